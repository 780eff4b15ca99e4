"""A saved folder restores bit by bit, in another process too; nothing interrupts it half-way and nothing in it runs."""

from __future__ import annotations

import functools
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdkit.errors import KdError
from kdkit.storage import atomic_folder as folders
from kdkit.storage import folder, integrity, layout
from kdkit.storage.structure import tensors
from tests.fixtures.restructuring import adapted, drop_head, factorised, narrow_block, narrow_mlp, output
from tests.fixtures.zoo import MODELS, Mlp, batch, cnn, lstm, mlp, tiny_bert, tiny_gpt2, tiny_llama

ROOT = Path(__file__).parents[2]


def narrowed() -> nn.Module:
    model = mlp()
    narrow_mlp(model, torch.tensor([1, 4, 9, 16]))
    return model


def shrunken_cnn() -> nn.Module:
    model = cnn()
    narrow_block(model.blocks[0], torch.arange(5))
    del model.blocks[1]
    return model


def split_mlp() -> nn.Module:
    model = mlp()
    model.second = factorised(model.second, 3)
    return model


def headless_bert() -> nn.Module:
    model = tiny_bert(num_labels=3)
    drop_head(model)
    return model


MADE: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "narrowed": ("mlp", narrowed),
    "shrunken": ("cnn", shrunken_cnn),
    "split": ("mlp", split_mlp),
    "headless": ("tiny_bert", headless_bert),
    "lora": ("tiny_bert", lambda: adapted(tiny_bert(), "query", "value")),
    "dora": ("tiny_llama", lambda: adapted(tiny_llama(), "q_proj", dora=True)),
    "tied": ("tiny_gpt2", tiny_gpt2),
    "bf16": ("tiny_llama", lambda: tiny_llama().bfloat16()),
    "lstm": ("lstm", lstm),
}
"""What a stage might have made: of which model of the zoo, and how."""


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = tensors(one), tensors(other)
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return folder.save(tmp_path / "small", narrowed(), mlp(), {"label": "small"})


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def reseal(folder: Path) -> None:
    """Let the checksums be right again, as someone would who means harm."""
    edit(folder / "kd.json", files={name: facts for name, facts in integrity.checksums(folder).items() if name != "kd.json"})


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_a_changed_model_is_restored_bit_by_bit_without_a_skeleton(tmp_path, name):
    origin, make = MADE[name]
    model = make()
    folder.save(tmp_path / "small", model, MODELS[origin](), {})
    again, _ = folder.load(tmp_path / "small")
    assert same(again, model)
    assert torch.equal(output(again, batch(origin)), output(model, batch(origin)))


RESTORE = """
import sys, warnings
warnings.filterwarnings("ignore")
from safetensors.torch import save_file
from kdkit.storage import folder as store
from tests.fixtures.restructuring import output
from tests.fixtures.zoo import batch
given = dict(pair.split("=") for pair in sys.argv[2:])
save_file({name: output(store.load(f"{sys.argv[1]}/{name}")[0], batch(origin)).contiguous() for name, origin in given.items()}, f"{sys.argv[1]}/outputs.safetensors")
"""


@pytest.mark.slow
def test_another_process_gets_the_same_outputs_to_the_last_bit(tmp_path):
    for name, (origin, make) in MADE.items():
        folder.save(tmp_path / name, make(), MODELS[origin](), {})
    pairs = [f"{name}={origin}" for name, (origin, _) in MADE.items()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    ran = subprocess.run([sys.executable, "-c", RESTORE, str(tmp_path), *pairs], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    given = load_file(tmp_path / "outputs.safetensors")
    assert {name for name, (origin, make) in MADE.items() if not torch.equal(given[name], output(make(), batch(origin)))} == set()


def test_facts_come_back_with_fields_a_newer_kdkit_added_and_stay_when_saved_again(saved, tmp_path):
    edit(saved / "kd.json", colour={"of": ["a", "newer", "field"]})
    model, facts = folder.load(saved)
    assert facts == {"label": "small", "colour": {"of": ["a", "newer", "field"]}}
    folder.save(tmp_path / "other", model, mlp(), facts)
    assert folder.load(tmp_path / "other")[1] == facts


def test_the_folder_tells_versions_sizes_and_checksums(saved):
    head = folder.read(saved)
    assert head["schema"] == layout.SCHEMA
    assert head["environment"]["torch"] == torch.__version__
    assert {name: facts["size"] for name, facts in head["files"].items()} == {name: (saved / name).stat().st_size for name in ("structure.json", "weights.safetensors")}


def test_a_tied_weight_is_stored_once(tmp_path):
    folder.save(tmp_path / "gpt", tiny_gpt2(), None, {})
    stored = load_file(tmp_path / "gpt" / "weights.safetensors")
    assert "lm_head.weight" not in stored
    assert sum(tensor.numel() for tensor in stored.values()) == sum(weight.numel() for weight in tiny_gpt2().parameters())


def test_slices_of_one_memory_empty_and_int8_tensors_are_stored(tmp_path):
    model, memory = mlp(), torch.arange(12, dtype=torch.int8)
    for name, tensor in {
        "head_part": memory[:4],
        "tail": memory[6:],
        "all": memory.view(3, 4).T,
        "same_shape": memory.view(12),
        "none": memory[:0],
        "scalar": memory[3],
        "wide": memory[:1].expand(5),
    }.items():
        model.register_buffer(name, tensor)
    folder.save(tmp_path / "m", model, mlp(), {})
    assert same(folder.load(tmp_path / "m")[0], model)


@pytest.mark.parametrize("skeleton", [Mlp, mlp, lambda: Mlp(hidden=5), Mlp(hidden=5)], ids=["class", "function", "lambda", "instance"])
def test_a_skeleton_may_be_a_class_a_function_or_an_instance(saved, skeleton):
    assert same(folder.load(saved, skeleton)[0], narrowed())


def test_an_instance_given_as_skeleton_is_not_changed(saved):
    given, before = mlp(), mlp()
    folder.load(saved, given)
    assert same(given, before)


def test_loading_leaves_the_random_numbers_alone(saved):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    folder.load(saved)
    assert torch.equal(torch.rand(1), expected)


class Sized(nn.Module):
    """Can't be made without being told its size."""

    def __init__(self, size: int):
        super().__init__()
        self.fc = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def test_a_class_that_needs_arguments_is_asked_for(tmp_path):
    model = Sized(3)
    folder.save(tmp_path / "sized", model, Sized(3), {})
    with pytest.raises(KdError, match="can't create by itself") as caught:
        folder.load(tmp_path / "sized")
    assert any("Sized(...)" in hint for hint in caught.value.hints)
    assert same(folder.load(tmp_path / "sized", Sized(7))[0], model)


class Broken(nn.Module):
    """Fails when it is made."""

    def __init__(self, really: bool = True):
        super().__init__()
        if really:
            raise RuntimeError("no GPU")


def test_a_skeleton_that_can_not_be_made_is_reported(tmp_path):
    folder.save(tmp_path / "b", Broken(really=False), None, {})
    with pytest.raises(KdError, match="RuntimeError: no GPU"):
        folder.load(tmp_path / "b")
    for given in (3, lambda: 3):
        with pytest.raises(KdError, match="the skeleton is a int, not a model"):
            folder.load(tmp_path / "b", given)


class Graph(nn.Module):
    """A model that writes its own files."""

    def __init__(self, content: bytes):
        super().__init__()
        self.content = content

    def kdkit_save(self, folder: Path) -> dict[str, Any]:
        (folder / "model.onnx").write_bytes(self.content)
        return {"length": len(self.content)}

    @classmethod
    def kdkit_load(cls, folder: Path, facts: Mapping[str, Any]) -> Graph:
        assert facts["length"] == len(Path(folder, "model.onnx").read_bytes())
        return cls(Path(folder, "model.onnx").read_bytes())


def test_a_model_that_writes_itself_reads_itself(tmp_path, monkeypatch):
    folder.save(tmp_path / "graph", Graph(b"abc"), mlp(), {"label": "int8"})
    assert {path.name for path in (tmp_path / "graph").iterdir()} == {"kd.json", "model.onnx"}
    with pytest.raises(KdError, match="which is not installed here"):
        folder.load(tmp_path / "graph")
    monkeypatch.setattr("kdkit.storage.trusted_classes.trusted_packages", lambda: frozenset({Graph.__module__.partition(".")[0]}))
    model, facts = folder.load(tmp_path / "graph")
    assert (model.content, facts) == (b"abc", {"label": "int8"})


def test_what_is_not_data_is_refused_before_anything_is_written(tmp_path):
    class Local(nn.Module):
        pass

    with_lambda, with_local, with_hook, sparse = mlp(), mlp(), mlp(), mlp()
    with_lambda.act = lambda x: x
    with_local.dropout = Local()
    with_hook.first.register_forward_hook(lambda *_: None)
    sparse.register_buffer("index", torch.eye(3).to_sparse())
    cases = {"act is a function": with_lambda, "dropout is a": with_local, "first would lose its hooks": with_hook, "index is a torch.sparse_coo": sparse}
    for message, model in cases.items():
        with pytest.raises(KdError, match=message):
            folder.save(tmp_path / "m", model, mlp(), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("facts", [{"label": object()}, {"files": {}}, {"x": {1, 2}}])
def test_facts_must_be_plain_and_leave_kdkits_own_names(tmp_path, facts):
    with pytest.raises(KdError):
        folder.save(tmp_path / "m", mlp(), None, facts)
    assert list(tmp_path.iterdir()) == []


def test_an_older_folder_of_kdkit_is_replaced(saved):
    folder.save(saved, mlp(), None, {"label": "newer"})
    model, facts = folder.load(saved)
    assert facts["label"] == "newer"
    assert same(model, mlp())
    assert [path.name for path in saved.parent.iterdir()] == ["small"]


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "empty").mkdir()
    folder.save(tmp_path / "empty", mlp(), None, {})
    assert same(folder.load(tmp_path / "empty")[0], mlp())


def test_without_exchange_two_renames_do(saved, monkeypatch):
    monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    folder.save(saved, mlp(), None, {})
    assert same(folder.load(saved)[0], mlp())
    assert [path.name for path in saved.parent.iterdir()] == ["small"]


def test_nobodys_files_are_overwritten(saved, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(KdError, match="is not empty, and kdkit did not write it"):
        folder.save(tmp_path / "thesis", mlp(), None, {})
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(KdError, match=r"also holds notes.txt"):
        folder.save(saved, mlp(), None, {})
    assert (saved / "notes.txt").read_text() == "mine"
    assert same(folder.load(saved)[0], narrowed())


def test_a_place_that_can_not_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KdError, match="is a file"):
        folder.save(tmp_path / "file", mlp(), None, {})
    with pytest.raises(KdError, match=r"can't write .*file/below"):
        folder.save(tmp_path / "file" / "below", mlp(), None, {})


def test_a_full_disk_leaves_the_old_folder(saved, monkeypatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "checksums", full)
    with pytest.raises(KdError, match="No space left on device"):
        folder.save(saved, mlp(), None, {})
    assert [path.name for path in saved.parent.iterdir()] == ["small"]
    assert same(folder.load(saved)[0], narrowed())


def test_a_missing_folder_is_reported_with_its_nearest_name(saved):
    with pytest.raises(KdError, match="there is no folder") as caught:
        folder.load(saved.parent / "smal")
    assert caught.value.hints[0] == "did you mean small?"
    with pytest.raises(KdError, match="is a file; a saved version is a folder"):
        folder.load(saved / "kd.json")


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no head": (lambda folder: (folder / "kd.json").unlink(), "kd.json is missing"),
    "no structure": (lambda folder: (folder / "structure.json").unlink(), "structure.json is missing"),
    "no weights": (lambda folder: (folder / "weights.safetensors").unlink(), "weights.safetensors is missing"),
    "head cut off": (lambda folder: cut(folder / "kd.json", 90), "kd.json is damaged"),
    "head empty": (lambda folder: cut(folder / "kd.json", 0), "kd.json is damaged"),
    "head not utf-8": (lambda folder: (folder / "kd.json").write_bytes(b"\xff\xfe{"), "kd.json is damaged"),
    "head a list": (lambda folder: (folder / "kd.json").write_text("[]"), "was not written by kdkit"),
    "another program's": (lambda folder: (folder / "kd.json").write_text('{"a": 1}'), "was not written by kdkit"),
    "head lacks": (lambda folder: (folder / "kd.json").write_text('{"format": "kdkit", "schema": 1}'), "lacks class, skeleton, environment, files"),
    "newer": (lambda folder: edit(folder / "kd.json", schema=99), "saved by a newer kdkit"),
    "structure cut off": (lambda folder: cut(folder / "structure.json", 50), "structure.json is cut off: 50 bytes of"),
    "weights cut off": (lambda folder: cut(folder / "weights.safetensors", 500), "weights.safetensors is cut off: 500 bytes of"),
    "weights flipped": (lambda folder: flip(folder / "weights.safetensors"), "its checksum differs"),
    "structure flipped": (lambda folder: flip(folder / "structure.json"), "its checksum differs"),
    "resealed short": (lambda folder: (cut(folder / "weights.safetensors", 500), reseal(folder)), "weights.safetensors is damaged"),
    "resealed header": (lambda folder: (cut(folder / "weights.safetensors", 5), reseal(folder)), "weights.safetensors is damaged"),
    "resealed structure": (lambda folder: (cut(folder / "structure.json", 50), reseal(folder)), "structure.json is damaged"),
    "resealed nonsense": (lambda folder: ((folder / "structure.json").write_text('{"modules": {"": {}}}'), reseal(folder)), "holds no structure"),
    "other weights": (
        lambda folder: (save_file({"a": torch.zeros(1)}, folder / "weights.safetensors"), reseal(folder)),
        "the weights do not fit the structure: first.weight is missing",
    ),
    "outside": (lambda folder: edit(folder / "kd.json", files={"../kd.json": {}}), r"files.*is '../kd.json': it should be a path inside the folder"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_kind_of_damage_is_reported_in_one_message_with_what_to_do(saved, damage):
    harm, message = DAMAGE[damage]
    harm(saved)
    with pytest.raises(KdError, match=message) as caught:
        folder.load(saved)
    assert caught.value.hints


class Trap:
    """A pickle that leaves a folder behind when it is read."""

    def __init__(self, sprung: Path):
        self.sprung = str(sprung)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.sprung,))


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "model.bin", "extra/state.pkl"])
@pytest.mark.parametrize("form", ["pickle", "zip"])
def test_a_pickle_is_refused_and_never_read(saved, name, form):
    (saved / name).parent.mkdir(exist_ok=True)
    trap = pickle.dumps(Trap(saved.parent / "sprung"))
    if form == "pickle":
        (saved / name).write_bytes(trap)
    else:
        with zipfile.ZipFile(saved / name, "w") as archive:
            archive.writestr("archive/data.pkl", trap)
    reseal(saved)
    with pytest.raises(KdError, match="is a pickle, which can run code"):
        folder.load(saved)
    assert not (saved.parent / "sprung").exists()
    pickle.loads(trap)
    assert (saved.parent / "sprung").exists()


@pytest.mark.parametrize("named", ["os:system", "antigravity:geohash", "subprocess:Popen", "no_such_package:Net"])
def test_a_folder_can_not_have_anything_called(saved, named):
    edit(saved / "kd.json", skeleton={"kind": "class", "class": named})
    with pytest.raises(KdError, match="can't create by itself"):
        folder.load(saved)


def test_code_that_is_in_the_folder_is_not_imported(saved, monkeypatch):
    (saved / "evil.py").write_text("raise SystemExit('ran')\nclass Net: pass\n")
    edit(saved / "kd.json", skeleton={"kind": "class", "class": "evil:Net"})
    monkeypatch.syspath_prepend(str(saved))
    with pytest.raises(KdError, match="can't create by itself"):
        folder.load(saved)
    assert "evil" not in sys.modules


def test_a_skeleton_of_another_class_is_refused_with_what_does_not_fit(saved):
    with pytest.raises(KdError, match=r"does not fit the skeleton tests.fixtures.zoo:Cnn: the model is a tests.fixtures.zoo:Mlp"):
        folder.load(saved, cnn())


def test_other_versions_are_named_when_a_load_fails(saved):
    edit(saved / "kd.json", environment={"torch": "1.0", "python": "2.7"})
    assert folder.load(saved)
    with pytest.raises(KdError) as caught:
        folder.load(saved, cnn())
    assert any("saved with torch 1.0" in hint for hint in caught.value.hints)


@functools.cache
def is_on_the_way(filename: str) -> bool:
    """Whether a file is kdkit's or one of those of the standard library that copy, move and write for it."""
    path = Path(filename)
    return path.parent.name in ("kdkit", "json", "safetensors") or path.name in ("contextlib.py", "pathlib.py", "shutil.py", "hashlib.py")


@functools.cache
def moves(filename: str) -> bool:
    """Whether a file is one of those that rename and remove."""
    return Path(filename).name in ("folders.py", "shutil.py")


class Interrupter:
    """Raises KeyboardInterrupt at the n-th line that a save or load runs in some files."""

    def __init__(self, at: int, where: Callable[[str], bool] = is_on_the_way):
        self.at, self.where, self.count = at, where, 0

    def __call__(self, frame: Any, event: str, _: Any) -> Any:
        if not self.where(frame.f_code.co_filename):
            return None
        self.count += event == "line"
        if self.count == self.at:
            self.count += 1
            sys.settrace(None)
            raise KeyboardInterrupt
        return self

    def run(self, action: Callable[[], object]) -> bool:
        """Run an action; whether it was interrupted."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            action()
        except KeyboardInterrupt:
            return True
        except KdError as error:  # shutil.rmtree, interrupted where it closes a directory, closes it twice
            if not isinstance(error.__context__ and error.__context__.__context__, KeyboardInterrupt):
                raise
            return True
        finally:
            sys.settrace(before)
        return False


def lines_of(action: Callable[[], object], where: Callable[[str], bool] = is_on_the_way) -> int:
    counter = Interrupter(-1, where)
    counter.run(action)
    return counter.count


@pytest.mark.slow
@pytest.mark.parametrize("exchange", [True, False])
def test_an_interrupted_save_leaves_the_old_folder_or_the_new_one_intact(tmp_path, monkeypatch, exchange):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    if not exchange:
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    target, old, new = tmp_path / "net", Mlp(hidden=3), Mlp(hidden=4)
    kept = folder.save(tmp_path / "kept", old, Mlp(), {"label": "old"})

    def save() -> None:
        folder.save(target, new, Mlp(), {"label": "new"})

    save()
    points = [(at, is_on_the_way) for at in random.Random(0).sample(range(1, lines_of(save)), 30)]
    points += [(at, moves) for at in range(1, lines_of(save, moves))]
    seen = set()
    for at, where in points:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(kept, target)
        interrupted = Interrupter(at, where).run(save)
        assert target.is_dir()
        model, facts = folder.load(target)
        assert same(model, {"old": old, "new": new}[facts["label"]])
        seen.add((interrupted, facts["label"]))
    assert {(True, "old"), (True, "new")} <= seen
    save()
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "net"}


@pytest.mark.slow
def test_an_interrupted_first_save_leaves_nothing_that_looks_like_a_folder_or_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)

    def save() -> None:
        folder.save(tmp_path / "net", mlp(), None, {})

    save()
    lines = lines_of(save)
    for at in random.Random(2).sample(range(1, lines), 40):
        shutil.rmtree(tmp_path / "net", ignore_errors=True)
        Interrupter(at).run(save)
        if (tmp_path / "net").exists():
            assert same(folder.load(tmp_path / "net")[0], mlp())
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] in ([], ["net"])


def test_an_interrupted_load_changes_nothing(saved):
    given, before = mlp(), mlp()
    lines = lines_of(lambda: folder.load(saved, given))
    for at in random.Random(3).sample(range(1, lines), 60):
        assert Interrupter(at).run(lambda: folder.load(saved, given))
        assert same(given, before)
    assert same(folder.load(saved)[0], narrowed())


def test_a_process_killed_between_two_renames_is_recovered_from(saved):
    os.rename(saved, saved.parent / ".small.kdkit-old-999999999-0")
    assert same(folder.load(saved)[0], narrowed())


def test_a_failing_save_after_such_a_kill_keeps_the_old_folder(saved, monkeypatch):
    os.rename(saved, saved.parent / ".small.kdkit-old-999999999-0")
    monkeypatch.setattr(folder, "_write_model", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        folder.save(saved, mlp(), None, {})
    assert same(folder.load(saved)[0], narrowed())


def test_litter_of_dead_processes_is_swept_and_that_of_living_ones_left(saved):
    dead, living = saved.parent / ".small.kdkit-new-999999999-0", saved.parent / f".small.kdkit-new-{os.getppid()}-0"
    dead.mkdir()
    living.mkdir()
    folder.save(saved, mlp(), None, {})
    assert not dead.exists()
    assert living.exists()
