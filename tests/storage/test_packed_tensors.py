"""Packed tensors and parametrized layers come back bit for bit, and a manifest can name no class that is not trusted."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from kdkit import KdError, Session, Stage, Trait
from kdkit.measurement.size import size_bytes
from kdkit.models import traits_of
from kdkit.models.packed_tensors import plain_parts
from kdkit.storage import folder, trusted_classes
from kdkit.storage.rebuild import empty_copy, rebuild
from kdkit.storage.structure import describe, tensors
from tests.fixtures.packed import Int4, pack, pack_twice


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def packed(how: Callable[[nn.Linear], nn.Linear] = pack) -> nn.Sequential:
    model = net()
    how(model[0])
    return model


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests are an installed plugin."""
    monkeypatch.setattr(trusted_classes, "trusted_packages", lambda: frozenset({*trusted_classes.TRUSTED, "tests"}))


def assert_same(model: nn.Module, again: nn.Module, x: Tensor) -> None:
    mine, theirs = tensors(model), tensors(again)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    with torch.no_grad():
        assert torch.equal(model(x), again(x))


def assert_restored(model: nn.Module, path: Path, skeleton: Any = None, x: Tensor | None = None) -> nn.Module:
    folder.save(path, model, None, {})
    again, _ = folder.load(path, skeleton)
    assert_same(model, again, torch.randn(5, 16) if x is None else x)
    return again


# Packed tensors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [pack, pack_twice])
def test_packed_weights_come_back_in_their_class_bit_for_bit(how: Callable[[nn.Linear], nn.Linear], trusted: None, tmp_path: Path) -> None:
    model = packed(how)
    weight: Any = assert_restored(model, tmp_path / "m")[0].weight
    assert (type(weight), isinstance(weight, nn.Parameter), weight.requires_grad) == (Int4, True, False)
    assert type(weight.scale) is type(model[0].weight.scale)
    assert (weight.rounding.mode, weight.rounding.limits) == ("nearest", (-7, 7))


def test_the_folder_holds_the_packed_bytes_and_no_pickle(trusted: None, tmp_path: Path) -> None:
    folder.save(tmp_path / "m", packed(), None, {})
    assert (tmp_path / "m" / "weights.safetensors").stat().st_size < size_bytes(packed()) + 600
    assert size_bytes(packed()) == 8 * 8 + 8 * 4 + 8 * 4 + 4 * 8 * 4 + 4 * 4
    assert {path.suffix for path in (tmp_path / "m").iterdir()} == {".json", ".safetensors"}


def test_a_packed_weight_in_two_places_comes_back_as_one(trusted: None, tmp_path: Path) -> None:
    model = packed()
    model[2] = nn.Linear(16, 8)
    model[2].weight = model[0].weight
    folder.save(tmp_path / "m", model, None, {})
    again, _ = folder.load(tmp_path / "m")
    assert again[2].weight is again[0].weight


def test_a_packed_buffer_and_a_packed_attribute_come_back(trusted: None, tmp_path: Path) -> None:
    model = net()
    model[0].register_buffer("table", Int4.of(torch.randn(2, 4)))
    model[0].extra = Int4.of(torch.randn(2, 6))  # type: ignore[assignment]
    again = assert_restored(model, tmp_path / "m")
    assert type(again[0].table) is type(again[0].extra) is Int4


def test_packed_weights_are_restored_over_a_skeleton_of_float_weights(trusted: None, tmp_path: Path) -> None:
    assert_restored(packed(), tmp_path / "m", net())


def test_float_weights_are_restored_over_a_skeleton_of_packed_weights(tmp_path: Path) -> None:
    assert type(assert_restored(net(), tmp_path / "m", packed())[0].weight) is nn.Parameter


def test_a_class_of_a_notebook_is_taken_from_a_skeleton_that_has_it(tmp_path: Path) -> None:
    assert_restored(packed(), tmp_path / "m", packed())


def test_a_class_that_is_not_trusted_is_refused_without_such_a_skeleton(tmp_path: Path) -> None:
    folder.save(tmp_path / "m", packed(), None, {})
    with pytest.raises(KdError, match="0.weight is a tests.fixtures.packed:Int4, which is not installed here"):
        folder.load(tmp_path / "m")


@pytest.mark.parametrize("how", [pack, pack_twice])
def test_an_empty_copy_has_memory_of_its_own(how: Callable[[nn.Linear], nn.Linear]) -> None:
    model = packed(how)
    before = [part.clone() for part in plain_parts(model[0].weight)]
    copied = empty_copy(model)
    for tensor in tensors(copied).values():
        tensor.detach().zero_()
    assert all(torch.equal(part, old) for part, old in zip(plain_parts(model[0].weight), before, strict=True))
    assert type(copied[0].weight) is Int4


def test_a_stage_that_packs_one_layer_is_saved_opened_and_worked_on(trusted: None, tmp_path: Path) -> None:
    class Pack(Stage):
        """Pack the first layer."""

        id: ClassVar = "quantize.pack-first"
        adds: ClassVar = {Trait.PACKED_WEIGHTS}

        def apply(self, model: Any, context: Any) -> None:
            pack(model[0])

    x = torch.randn(32, 16)
    session = Session(net(), train=(x, torch.arange(32) % 4), measures=())
    session.run(Pack())
    assert session.head.traits == traits_of(packed())
    session.save(tmp_path / "m")
    again = Session.open(tmp_path / "m", train=(x, torch.arange(32) % 4), measures=())
    assert_same(session.head.model, again.head.model, x)
    again.run("decompose svd --layers 2 --rank 1")
    assert torch.equal(again.head.model[0].weight.packed, session.head.model[0].weight.packed)
    again.undo()
    with pytest.raises(KdError, match="decompose svd: none of the layers can be decomposed") as caught:
        again.run("decompose svd --layers 0 --rank 1")
    assert "0: it has packed weights" in caught.value.hints


# Hostile manifests -------------------------------------------------------------------------------------------------


def tampered(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Save a packed model, and change the entry of its packed weight with the checksum."""
    folder.save(path, packed(), None, {})
    structure, head = path / "structure.json", path / "kd.json"
    manifest = json.loads(structure.read_text())
    change(manifest["modules"]["0"]["parameters"]["weight"])
    structure.write_text(json.dumps(manifest))
    facts = json.loads(head.read_text())
    facts["files"]["structure.json"] = folder.checksums(path)["structure.json"]
    head.write_text(json.dumps(facts))


HOSTILE = {
    "a class of no trusted package": lambda spec: spec.update({"class": "os:system"}),
    "a class that is no tensor": lambda spec: spec.update({"class": "torch.nn.modules.linear:Linear"}),
    "a function": lambda spec: spec.update({"class": "torch.hub:load"}),
    "a plain tensor class": lambda spec: spec.update({"class": "torch:Tensor"}),
    "no class name": lambda spec: spec.update({"class": 3}),
    "another shape": lambda spec: spec.update({"shape": [3, 3]}),
    "a shape of no numbers": lambda spec: spec.update({"shape": ["a"]}),
    "another dtype": lambda spec: spec.update({"dtype": "float16"}),
    "a part too few": lambda spec: spec["inner"].pop("scale"),
    "a part of another name": lambda spec: spec["inner"].update({"scales": spec["inner"].pop("scale")}),
    "a part too many": lambda spec: spec["inner"].update({"more": {"shape": [1], "dtype": "float32"}}),
    "a part of another shape": lambda spec: spec["inner"]["packed"].update({"shape": [8, 3]}),
    "a part of a negative shape": lambda spec: spec["inner"]["packed"].update({"shape": [-8, 8]}),
    "a part that is none": lambda spec: spec["inner"].update({"scale": None}),
    "a part that is no entry": lambda spec: spec["inner"].update({"scale": 7}),
    "parts in parts without end": lambda spec: spec["inner"].update({"scale": copy.deepcopy(spec)}),
    "no context": lambda spec: spec.pop("context"),
    "a context of an untrusted class": lambda spec: spec.update({"context": {"rounding": {"$": "object", "class": "subprocess:Popen", "fields": {}}}}),
    "a context of another form": lambda spec: spec.update({"context": 5}),
    "no stride": lambda spec: spec.pop("stride"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_manifest_that_does_not_fit_its_class_is_one_error(what: str, trusted: None, tmp_path: Path) -> None:
    tampered(tmp_path / "m", HOSTILE[what])
    with pytest.raises(KdError):
        folder.load(tmp_path / "m")


# Parametrizations --------------------------------------------------------------------------------------------------


class Halved(nn.Module):
    """A parametrization with a buffer and a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(0.5))
        self.note = "halved"

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / self.factor


def with_registered(model: nn.Sequential) -> None:
    parametrize.register_parametrization(model[0], "weight", Halved())


def with_two(model: nn.Sequential) -> None:
    with_registered(model)
    parametrize.register_parametrization(model[0], "weight", Halved())
    parametrize.register_parametrization(model[0], "bias", Halved())


PARAMETRIZED = {
    "weight_norm": lambda model: parametrizations.weight_norm(model[0]),
    "orthogonal": lambda model: parametrizations.orthogonal(model[0]),
    "spectral_norm": lambda model: parametrizations.spectral_norm(model[0]),
    "registered": with_registered,
    "two": with_two,
}


@pytest.mark.parametrize("kind", PARAMETRIZED)
@pytest.mark.parametrize("skeleton", ["none", "plain", "parametrized"])
def test_parametrized_layers_compute_the_same_after_loading(kind: str, skeleton: str, trusted: None, tmp_path: Path) -> None:
    model = net()
    PARAMETRIZED[kind](model)
    model.eval()
    other = net()
    PARAMETRIZED[kind](other)
    again = assert_restored(model, tmp_path / "m", {"none": None, "plain": net(), "parametrized": other}[skeleton])
    assert parametrize.is_parametrized(again[0], "weight")
    assert parametrize.type_before_parametrizations(again[0]) is nn.Linear


def test_a_restored_parametrization_trains_on(trusted: None, tmp_path: Path) -> None:
    model = net()
    with_registered(model)
    again = assert_restored(model, tmp_path / "m")
    again(torch.randn(2, 16)).sum().backward()
    assert again[0].parametrizations.weight.original.grad is not None
    parametrize.remove_parametrizations(again[0], "weight")
    assert type(again[0]) is nn.Linear


def test_a_plain_layer_is_restored_over_a_parametrized_skeleton(trusted: None, tmp_path: Path) -> None:
    skeleton = net()
    with_registered(skeleton)
    again = assert_restored(net(), tmp_path / "m", skeleton)
    assert not parametrize.is_parametrized(again[0])


def test_a_parametrized_root_is_restored_on_an_instance_of_its_class(trusted: None, tmp_path: Path) -> None:
    layer = nn.Linear(16, 3)
    parametrize.register_parametrization(layer, "weight", Halved())
    assert_restored(layer, tmp_path / "m", nn.Linear(16, 3))


def test_a_packed_tensor_may_be_parametrized(trusted: None, tmp_path: Path) -> None:
    class Plain(nn.Module):
        def forward(self, weight: Any) -> Tensor:
            return weight.dequantized()

    Plain.__qualname__, Plain.__module__ = "Plain", __name__
    globals()["Plain"] = Plain
    model = packed()
    parametrize.register_parametrization(model[0], "weight", Plain(), unsafe=True)
    again = assert_restored(model, tmp_path / "m")
    assert type(again[0].parametrizations.weight.original) is Int4
    assert Trait.PACKED_WEIGHTS in traits_of(again)


@pytest.mark.parametrize("names", [["forward"], ["bias"], ["__class__"], [3], "weight", [["weight"]]])
def test_a_manifest_can_parametrize_only_what_has_parametrizations(names: Any) -> None:
    model = net()
    with_registered(model)
    manifest = json.loads(json.dumps(describe(model)))
    manifest["modules"]["0"]["parametrized"] = names
    skeleton = net()
    with_registered(skeleton)
    with pytest.raises(KdError, match=r"can't be parametrized as it was saved|parametrized\S* is"):
        rebuild(skeleton, manifest)


# What others pack --------------------------------------------------------------------------------------------------

TORCHAO = ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig", "IntxWeightOnlyConfig", "Int8DynamicActivationIntxWeightConfig", "Float8WeightOnlyConfig"]


def wide() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 4)).eval()


@pytest.mark.parametrize("config", TORCHAO)
@pytest.mark.filterwarnings("ignore")
def test_weights_of_torchao_come_back_bit_for_bit(config: str, tmp_path: Path) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    model = wide()
    torchao.quantize_(model, getattr(torchao, config)())
    again = assert_restored(model, tmp_path / "m", x=torch.randn(8, 64))
    assert type(again[0].weight) is type(model[0].weight) is not nn.Parameter


@pytest.mark.filterwarnings("ignore")
def test_nf4_weights_of_torchao_come_back_bit_for_bit(tmp_path: Path) -> None:
    nf4 = pytest.importorskip("torchao.quantization.quantize_.workflows.nf4.nf4_tensor")
    model = wide()
    for layer in (model[0], model[2]):
        layer.weight = nn.Parameter(nf4.to_nf4(layer.weight.detach(), block_size=64, scaler_block_size=2), requires_grad=False)
    assert_restored(model, tmp_path / "m", x=torch.randn(8, 64))


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
@pytest.mark.filterwarnings("ignore")
def test_weights_of_bitsandbytes_come_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = wide()
    for index in (0, 2):
        weight, bias = model[index].weight.detach(), model[index].bias
        if kind == "int8":
            layer = bitsandbytes.nn.Linear8bitLt(*weight.T.shape, has_fp16_weights=False)
            layer.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        else:
            layer = bitsandbytes.nn.Linear4bit(*weight.T.shape, compute_dtype=torch.float32, quant_type=kind, compress_statistics=kind == "nf4")
            layer.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type=kind, compress_statistics=kind == "nf4", module=layer)
            layer.weight = layer.weight._quantize("cpu")
        layer.bias = bias
        model[index] = layer.eval()
    with torch.no_grad():
        model(torch.randn(8, 64))  # int8 weights are quantized at the first call
    again = assert_restored(model, tmp_path / "m", x=torch.randn(8, 64))
    assert type(again[0].weight) is type(model[0].weight)
