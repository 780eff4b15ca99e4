"""A folder from a stranger runs no code, reads and writes no file outside of it, and ends in one error that names file and field."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from kdkit import KdError, Session
from kdkit.storage import folder
from tests.fixtures.zoo import tiny_bert

DATA = (torch.randn(4, 4), torch.arange(4) % 3)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.ReLU(), nn.BatchNorm1d(6)), nn.Linear(6, 3)).eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return folder.save(tmp_path / "small", net(), None, {"label": "small"})


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder.save(tmp_path_factory.mktemp("bert") / "bert", tiny_bert(), None, {})


def edit(place: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Path:
    """Change kd.json and structure.json, and write checksums that fit, as someone would who means harm."""
    head, structure = json.loads((place / "kd.json").read_text()), json.loads((place / "structure.json").read_text())
    change(head, structure)
    content = json.dumps(structure).encode()
    (place / "structure.json").write_bytes(content)
    if isinstance(head.get("files"), dict) and "structure.json" in head["files"]:
        head["files"]["structure.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (place / "kd.json").write_text(json.dumps(head))
    return place


def in_structure(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
    return lambda head, structure: change(structure["modules"])


def attribute(name: str, code: Any) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
    return in_structure(lambda modules: modules["0"]["attributes"].update({name: code}))


# No code runs ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("module", ["small.inside", "beside", "torchao.evil", "torchao", "bitsandbytes.nn"])
@pytest.mark.parametrize("root", [True, False])
def test_no_module_of_the_folder_or_the_working_directory_is_imported(module: str, root: bool, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = saved.parent / Path(*module.split("."))
    home = place / "__init__.py" if module in ("torchao", "bitsandbytes.nn") else place.with_suffix(".py")
    home.parent.mkdir(parents=True, exist_ok=True)
    home.write_text(f"import pathlib\npathlib.Path({str(saved.parent)!r}, 'ran').touch()\nfrom torch import nn\nclass Net(nn.Sequential): pass\n")
    monkeypatch.chdir(saved.parent)
    monkeypatch.syspath_prepend("")

    def change(head: dict[str, Any], structure: dict[str, Any]) -> None:
        structure["modules"][""]["class"] = f"{module}:Net"
        if root:
            head["skeleton"] = {"kind": "class", "class": f"{module}:Net"}

    edit(saved, change)
    with pytest.raises(KdError):
        folder.load(saved)
    assert not (saved.parent / "ran").exists()
    assert module not in sys.modules


@pytest.mark.parametrize("module", ["torch.utils.bottleneck.__main__", "transformers.cli.transformers", "torch.testing._internal.common_utils", "peft.__main__"])
def test_no_program_of_a_trusted_package_is_imported(module: str, saved: Path) -> None:
    loaded = module in sys.modules
    for change in (
        in_structure(lambda modules: modules[""].update({"class": f"{module}:Net"})),
        lambda head, _: head.update(skeleton={"kind": "class", "class": f"{module}:Net"}),
    ):
        edit(saved, change)
        with pytest.raises(KdError):
            folder.load(saved)
    assert (module in sys.modules) == loaded


@pytest.mark.slow
def test_an_object_with_a_destructor_is_not_made(saved: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    fields = {"_volatile_checkpoints_dir": str(victim), "_run": None, "_should_clean_recursively": True}
    edit(saved, attribute("x", {"$": "object", "class": "transformers.integrations.integration_utils:NeptuneCallback", "fields": fields}))
    with pytest.raises(KdError, match="0:x is a NeptuneCallback"):
        folder.load(saved)
    gc.collect()
    assert victim.exists()


class Scratch:
    """An object of the user's own that removes a folder when it is deleted."""

    def __init__(self, place: str):
        self.place = place

    def __del__(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)


@pytest.mark.slow
def test_the_fields_of_a_skeletons_object_with_a_destructor_stay(saved: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    skeleton = net()
    skeleton[0].scratch = Scratch(str(tmp_path / "nothing"))  # type: ignore[assignment]
    edit(saved, attribute("scratch", {"$": "object", "class": f"{Scratch.__module__}:Scratch", "fields": {"place": str(victim)}}))
    with pytest.raises(KdError, match="scratch is a Scratch"):
        folder.load(saved, skeleton)
    del skeleton
    gc.collect()
    assert victim.exists()


FUNCTION = {"$": "function", "home": "torch.nn.functional", "name": "relu"}
SHADOWS = {
    "forward": FUNCTION,
    "eval": 5,
    "training": "x",
    "_forward_hooks": 3,
    "_parameters": {},
    "__class__": "x",
    "to": None,
    "weight": 3,
    "state_dict": [],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHADOWS)
def test_an_attribute_can_not_hide_a_method_or_the_state_of_a_module(name: str, saved: Path) -> None:
    edit(saved, attribute(name, SHADOWS[name]))
    with pytest.raises(KdError, match=f"'{name}'"):
        folder.load(saved)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["load", "save", "manual_seed", "compile", "set_default_dtype", "from_file", "__import__"])
def test_only_functions_of_tensors_can_be_named(name: str, saved: Path) -> None:
    edit(saved, attribute("act", {"$": "function", "home": "torch", "name": name}))
    with pytest.raises(KdError, match="act is a function"):
        folder.load(saved)


@pytest.mark.slow
def test_a_config_that_would_download_code_is_refused(bert: Path, tmp_path: Path) -> None:
    place = shutil.copytree(bert, tmp_path / "bert")
    edit(place, lambda head, _: head["skeleton"]["config"].update({"_attn_implementation": "stranger/kernel"}))
    with pytest.raises(KdError, match=r"skeleton.config: _attn_implementation names 'stranger/kernel'"):
        folder.load(place)


# Sizes are checked before anything is allocated --------------------------------------------------------------------


def weight(**fields: Any) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
    return in_structure(lambda modules: modules["0"]["parameters"]["weight"].update(fields))


BAD_TENSORS = {
    "an endless expanded shape": weight(shape=[2**40], stride=[0]),
    "a large shape": weight(shape=[2**20, 2**10]),
    "wide strides": weight(stride=[2**40, 1]),
    "a negative shape": weight(shape=[-4, 6]),
    "an unknown dtype": weight(dtype="float33"),
    "a dtype that is a function": weight(dtype="load"),
    "a gradient of integers": weight(dtype="int8", grad=True),
    "a shape that is no list": weight(shape=4),
    "strides for another shape": weight(stride=[1]),
    "the same as nothing": weight(same="nothing"),
    "the memory of itself": weight(shares="0.weight"),
    "a large attribute": attribute("x", {"$": "tensor", "name": "x", "spec": {"shape": [2**40], "dtype": "float32", "stride": [0]}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BAD_TENSORS)
def test_a_tensor_that_the_folder_does_not_hold_is_refused_by_name(what: str, saved: Path) -> None:
    edit(saved, BAD_TENSORS[what])
    began = time.monotonic()
    with pytest.raises(KdError, match=r"0\.weight|parameters\.weight|x is missing"):
        folder.load(saved)
    assert time.monotonic() - began < 5


@pytest.mark.slow
@pytest.mark.parametrize("field", [{"num_hidden_layers": 10**6}, {"hidden_size": 10**6}, {"vocab_size": 10**12}, {"num_labels": 10**9}, {"num_hidden_layers": 5000}])
def test_a_config_much_larger_than_the_folder_is_refused(field: dict[str, int], bert: Path, tmp_path: Path) -> None:
    place = edit(shutil.copytree(bert, tmp_path / "bert"), lambda head, _: head["skeleton"]["config"].update(field))
    began = time.thread_time()
    with pytest.raises(KdError, match=r"allow up to|much larger than what its folder holds"):
        folder.load(place)
    assert time.thread_time() - began < 5


def test_a_model_with_the_skeletons_config_loads_under_the_limits(bert: Path) -> None:
    assert type(folder.load(bert)[0]).__name__ == type(tiny_bert()).__name__


# Module trees ------------------------------------------------------------------------------------------------------


def chain(modules: dict[str, Any], depth: int) -> None:
    name = "1"
    for _ in range(depth):
        modules[name]["children"].append("deeper")
        modules[f"{name}.deeper"] = copy.deepcopy(modules["1.0"])
        name += ".deeper"


def doubled(modules: dict[str, Any]) -> None:
    for number in range(40):
        parent = f"1{'.deeper' * number}" if number else "1"
        modules[parent]["children"] += ["again"]
        modules[parent].setdefault("aliases", {})["again"] = f"{parent}.deeper"


TREES = {
    "a cycle": lambda modules: (modules["1"]["children"].append("up"), modules["1"].update(aliases={"up": ""})),
    "a module in itself": lambda modules: (modules["1"]["children"].append("me"), modules["1"].update(aliases={"me": "1"})),
    "a child that is missing": lambda modules: modules["1"]["children"].append("7"),
    "an alias of nothing": lambda modules: (modules["1"]["children"].append("7"), modules["1"].update(aliases={"7": "9"})),
    "a module without a parent": lambda modules: modules.update({"8.9": copy.deepcopy(modules["0"])}),
    "no root": lambda modules: modules.pop(""),
    "too deep": lambda modules: chain(modules, 900),
    "shared without end": lambda modules: (chain(modules, 45), doubled(modules)),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", TREES)
def test_modules_that_form_no_tree_are_refused(what: str, saved: Path) -> None:
    edit(saved, in_structure(TREES[what]))
    with pytest.raises(KdError, match="structure.json"):
        folder.load(saved)


def deep(levels: int) -> Any:
    code: Any = 1
    for _ in range(levels):
        code = {"$": "tuple", "items": [code]}
    return code


BAD_VALUES = {
    "a depth of 900": deep(400),
    "a device": {"$": "device", "name": "foo"},
    "a float": {"$": "float", "text": "nan(3"},
    "a pair of three": {"$": "dict", "items": [[1, 2, 3]]},
    "a kind": {"$": "lambda", "code": "1"},
    "a kind that is a list": {"$": [1]},
    "a reference": {"$": "same", "place": "nowhere"},
    "a module": {"$": "module", "name": "none"},
    "a set of lists": {"$": "set", "items": [[1]]},
    "a dict with a list as key": {"$": "dict", "items": [[[1], 2]]},
    "a size of text": {"$": "size", "items": ["a"]},
    "a weak reference to a number": {"$": "weakref", "to": {"$": "tuple", "items": []}},
    "a tensor": {"$": "tensor", "name": "none"},
    "items": {"$": "tuple", "items": 5},
    "an enum": {"$": "enum", "class": "peft.utils.peft_types:PeftType", "name": "mro"},
    "a dtype": {"$": "dtype", "name": "nn"},
    "a class": {"$": "class", "class": 5},
    "a class of no module": {"$": "class", "class": "transformers.trainer:Trainer"},
    "more than it has": {"$": "float", "text": "inf", "more": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BAD_VALUES)
def test_a_value_that_no_encoder_writes_is_one_error(what: str, saved: Path) -> None:
    edit(saved, attribute("x", BAD_VALUES[what]))
    with pytest.raises(KdError, match=r"x\b|structure.json"):
        folder.load(saved)


# kd.json -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["/etc/passwd", "../../etc/passwd", "../small/kd.json", "a/../kd.json", "./kd.json", "C:/x", "a\\..\\b", "a\nb", ""])
def test_a_file_name_outside_the_folder_is_refused_without_a_look_at_it(name: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(saved, lambda head, _: head["files"].update({name: {"size": 1, "sha256": "0" * 64}}))
    with pytest.raises(KdError, match="it should be a path inside the folder") as caught:
        folder.load(saved)
    assert "\n" not in caught.value.message
    assert "bytes" not in caught.value.message


def test_a_link_to_a_file_elsewhere_is_refused(saved: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.safetensors"
    shutil.move(saved / "weights.safetensors", secret)
    (saved / "weights.safetensors").symlink_to(secret)
    with pytest.raises(KdError, match="is a link to a place outside of its folder"):
        folder.load(saved)


@pytest.mark.skipif(not hasattr(os.stat_result, "st_blocks"), reason="this system does not tell how much of a file is stored")
@pytest.mark.parametrize("name", ["weights.safetensors", "structure.json", "kd.json"])
def test_a_sparse_file_is_refused_before_it_is_read(name: str, saved: Path) -> None:
    os.truncate(saved / name, 2**40)
    with pytest.raises(KdError, match="is a sparse file: it has 1,099,511,627,776 bytes"):
        folder.load(saved)


FIELDS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "files a list": (lambda head: head.update(files=[1]), "files is"),
    "a size a text": (lambda head: head["files"]["structure.json"].update(size="1"), "files.structure.json.size is '1'"),
    "no weights": (lambda head: head["files"].pop("weights.safetensors"), "files lacks weights.safetensors"),
    "environment a number": (lambda head: head.update(environment=5), "environment is 5"),
    "a version a number": (lambda head: head.update(environment={"torch": 2}), "environment.torch is 2"),
    "skeleton null": (lambda head: head.update(skeleton=None), "skeleton is None"),
    "skeleton a list": (lambda head: head.update(skeleton=[]), "skeleton is"),
    "skeleton empty": (lambda head: head.update(skeleton={}), "skeleton"),
    "an ONNX model without facts": (lambda head: head.update(skeleton={"kind": "own", "class": "kdkit:OnnxModel"}), "skeleton.own.facts is missing"),
    "an ONNX model with other facts": (lambda head: head.update(skeleton={"kind": "own", "class": "kdkit:OnnxModel", "facts": 5}), "skeleton.facts is 5"),
    "a class a number": (lambda head: head.update({"class": 3}), "class is 3"),
    "a config of another class": (
        lambda head: head.update(
            skeleton={"kind": "transformers", "class": "transformers.trainer:Trainer", "config_class": "transformers.trainer:Trainer", "config": {}}
        ),
        "there is no PreTrainedModel",
    ),
    "a storage of another type": (lambda head: head.update(storage=[1]), "storage is"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", FIELDS)
def test_a_field_of_another_type_is_named(what: str, saved: Path) -> None:
    change, message = FIELDS[what]
    data = json.loads((saved / "kd.json").read_text())
    change(data)
    if what not in ("files a list", "a size a text"):
        edit(saved, lambda head, _: (head.clear(), head.update(data)))
    else:
        (saved / "kd.json").write_text(json.dumps(data))
    with pytest.raises(KdError) as caught:
        folder.load(saved)
    assert message in caught.value.message


FACTS = {
    "label": [{"a": 1}, "slim\n!touch", "a b", "head", "-3", 5],
    "notes": [5, [1], {"a": 1}],
    "seed": ["a", -1, 2**70],
    "recipe": [5, [1], {"steps": 3}, {"distributions": [1]}],
    "task": [5],
    "outputs": [5, {}, {"args": [{"shape": [2**40], "dtype": "float32", "low": 0, "high": 1}], "kwargs": {}, "outputs": []}],
}


@pytest.mark.slow
@pytest.mark.parametrize(("fact", "value"), [(fact, value) for fact, values in FACTS.items() for value in values])
def test_a_fact_of_another_type_is_named_and_leaves_the_session(fact: str, value: Any, tmp_path: Path) -> None:
    session = Session(net(), train=DATA, measures=())
    session.save(tmp_path / "m")
    edit(tmp_path / "m", lambda head, _: head.update({fact: value}))
    for load in (session.load, Session.open):
        with pytest.raises(KdError, match=fact):
            load(tmp_path / "m")
    assert len(session.versions) == 1


def test_notes_of_a_folder_are_shown_without_control_characters(tmp_path: Path) -> None:
    session = Session(net(), train=DATA, measures=())
    session.save(tmp_path / "m")
    edit(tmp_path / "m", lambda head, _: head.update(notes=["a\x1b[2J\nb"]))
    assert session.load(tmp_path / "m").notes == ("a\\x1b[2J\\nb",)


def test_a_folder_name_with_a_line_break_stays_on_one_line_of_the_code(tmp_path: Path) -> None:
    session = Session(net(), train=DATA, measures=())
    session.save(tmp_path / "m\n!touch x")
    version = session.load(tmp_path / "m\n!touch x")
    assert len(session.code(version).splitlines()) == 1


# Outputs -----------------------------------------------------------------------------------------------------------


class Gate(nn.Module):
    """A net whose function can be exchanged, as by an edit of its class."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(ACTIVATION[0](self.layer(x)))


ACTIVATION: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {0: torch.relu}


@pytest.mark.slow
def test_a_skeleton_that_computes_something_else_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(Gate(), train=DATA, measures=())
    session.save(tmp_path / "m")
    assert not any("differ" in note for note in session.load(tmp_path / "m", Gate()).notes)
    monkeypatch.setitem(ACTIVATION, 0, torch.tanh)
    assert any("its outputs differ from those of the saved model" in note for note in session.load(tmp_path / "m", Gate()).notes)
    assert any("differ" in note for note in Session.open(tmp_path / "m", Gate(), measures=()).head.notes)


def test_a_folder_without_recorded_outputs_loads_without_a_note(tmp_path: Path) -> None:
    Session(net(), measures=()).save(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "kd.json").read_text())["outputs"]
    edit(tmp_path / "m", lambda head, _: head.pop("outputs"))
    assert Session.open(tmp_path / "m", train=DATA, measures=()).head.notes == ()


# Whatever is changed -----------------------------------------------------------------------------------------------


def places(code: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to every value in nested JSON."""
    yield path
    for key, item in code.items() if isinstance(code, dict) else enumerate(code) if isinstance(code, list) else ():
        yield from places(item, (*path, key))


def put(code: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    target = code
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return code


CODES = [
    {"$": kind, "items": [[1, 2]], "name": "x", "class": "torch.nn.modules.linear:Linear", "fields": {"a": 1}, "place": ":x", "to": {}}
    for kind in ("tuple", "object", "enum", "same", "dict")
]
VALUES = st.one_of(
    st.sampled_from(
        [None, True, -1, 0, 2**40, 2**70, -(2**40), 0.5, 1e300, "", "x", "../x", "/etc/passwd", "a\nb", [], {}, [[1]], {"$": "x"}, {"a": {"b": 1}}, deep(40)]
    ),
    st.sampled_from(["os:system", "torch.nn.modules.linear:Linear", "torch.nn.modules.rnn:LSTM", "subprocess:Popen", "float64", "0.weight", "1", "forward"]),
    st.sampled_from([*CODES, FUNCTION, {"$": "tensor", "name": "0.weight"}, {"$": "module", "name": ""}, {"$": "float", "text": "inf"}]),
)
HEAD, STRUCTURE = "kd.json", "structure.json"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    session = Session(net(), train=DATA, measures=())
    return session.save(tmp_path_factory.mktemp("fuzz") / "small")


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_changed_ends_in_a_model_or_in_one_error(data: st.DataObject, pristine: Path) -> None:
    place = pristine.parent / "changed"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(pristine, place)
    outside = {path: path.stat().st_mtime_ns for path in pristine.rglob("*")}

    def change(head: dict[str, Any], structure: dict[str, Any]) -> None:
        for _ in range(data.draw(st.integers(1, 2))):
            code = data.draw(st.sampled_from([head, structure, structure]))
            path = data.draw(st.sampled_from(list(places(code))[1:]))
            put(code, path, copy.deepcopy(data.draw(VALUES)))

    edit(place, change)
    session, began, errors = Session(net(), measures=()), time.thread_time(), []
    for load in (lambda: session.load(place), lambda: folder.load(place)):
        try:
            load()
        except KdError as error:
            errors.append(error.message)
    assert all("\n" not in message and len(message) < 2000 for message in errors)
    assert time.thread_time() - began < 5
    assert {path: path.stat().st_mtime_ns for path in pristine.rglob("*")} == outside
    assert {path.name for path in pristine.parent.iterdir()} == {"small", "changed"}
