"""Packed layers in ONNX: onnxruntime computes with the packed integers what torch computes, and counts and sizes are right."""

from __future__ import annotations

import pytest
import torch
from onnx import numpy_helper
from torch import nn

from kdkit import Session, Trait
from kdkit.backends.onnx.export import to_onnx
from kdkit.backends.onnx.model import OnnxModel
from kdkit.data import Batch
from kdkit.measurement.size import count_parameters, size_bytes
from kdkit_quantize.bit_packing import unpack_bits
from kdkit_quantize.group_quantization import METHODS
from kdkit_quantize.packed_export import Blocks, looks_up_packed, multiplies_packed
from kdkit_quantize.packed_layers import packed_kind
from kdkit_quantize.packed_weight import PackedWeight
from kdkit_quantize.packing_stage import weight_of
from tests.fixtures import zoo


def packed_weight(rows: int, columns: int, bits: int, group: int, method: str = "rtn") -> PackedWeight:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return PackedWeight(METHODS[method](weight, bits, min(group, columns)), bits, weight.shape, weight.dtype)


def packed_net(bits: int, columns: int, group: int, method: str, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Linear(columns, 24, bias=bias)
    return nn.Sequential(packed_kind(layer)(layer, packed_weight(24, columns, bits, group, method)), nn.ReLU()).eval()


def operators(model: OnnxModel) -> list[str]:
    return [node.op_type for node in model.graph().graph.node]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "columns", "group", "method"),
    [(2, 64, 16, "rtn"), (3, 64, 32, "rtn"), (4, 64, 64, "rtn"), (8, 64, 16, "rtn"), (4, 50, 64, "rtn"), (4, 50, 16, "rtn"), (4, 64, 32, "hqq"), (2, 50, 16, "hqq")],
)
def test_onnxruntime_computes_with_the_packed_integers_what_torch_computes(bits, columns, group, method):
    net, x = packed_net(bits, columns, group, method), torch.randn(5, columns, generator=torch.Generator().manual_seed(1))
    made = to_onnx(net, Batch((x,)))
    assert "MatMulNBits" in operators(made)
    torch.testing.assert_close(made(x), net(x), atol=1e-5, rtol=1e-5)
    assert count_parameters(made) == count_parameters(net)


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "columns", "group", "method"), [(8, 64, 32, "hqq"), (4, 64, 24, "rtn"), (4, 64, 8, "rtn")])
def test_a_layer_that_onnxruntime_cannot_run_packed_is_exported_in_float(bits, columns, group, method):
    net, x = packed_net(bits, columns, group, method), torch.randn(5, columns)
    made = to_onnx(net, Batch((x,)))
    assert "MatMulNBits" not in operators(made)
    torch.testing.assert_close(made(x), net(x), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_convolutions_are_exported_in_float_and_the_exported_model_is_not_changed():
    model, batch = zoo.cnn(), zoo.batch("cnn")
    mine = Session(model, eval=[batch])
    before = mine.run("quantize weights --bits 4").model
    made = mine.run("convert onnx")
    torch.testing.assert_close(batch.call(made.model), batch.call(before), atol=1e-4, rtol=1e-4)
    assert "1 of 6 packed layers stay packed in onnxruntime" in made.notes
    assert any(note.startswith("in float32: stem, blocks.0.conv1, ") for note in made.notes)
    assert all(hasattr(module, "packed") for name, module in before.named_modules() if name in ("stem", "head"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_a_transformer_stays_packed_with_its_embeddings(name):
    mine = Session(zoo.MODELS[name](), eval=[zoo.batch(name)])
    packed = mine.run("quantize weights --bits 4 --group 32").model
    made = mine.run("convert onnx")
    assert {"MatMulNBits", "GatherBlockQuantized"} <= set(operators(made.model))
    assert made.traits == {Trait.ONNX, Trait.FLOAT_WEIGHTS, Trait.PACKED_WEIGHTS}
    torch.testing.assert_close(*(zoo.batch(name).call(model)["logits"] for model in (made.model, packed)), atol=1e-4, rtol=1e-4)
    assert size_bytes(made.model) < size_bytes(to_onnx(zoo.MODELS[name](), zoo.batch(name))) / 2


@pytest.mark.slow
def test_a_saved_graph_is_packed_again_when_it_is_loaded(tmp_path):
    mine = Session(zoo.mlp(), eval=[zoo.batch("mlp")])
    mine.run("quantize weights --bits 4\nconvert onnx")
    mine.save(tmp_path / "small")
    loaded = Session.open(tmp_path / "small").head
    assert Trait.PACKED_WEIGHTS in loaded.traits
    torch.testing.assert_close(zoo.batch("mlp").call(loaded.model), zoo.batch("mlp").call(mine.head.model), atol=0, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_packed_version_is_exported_as_a_file(tmp_path, suffix):
    mine = Session(zoo.mlp(), eval=[zoo.batch("mlp")])
    mine.run("quantize weights --bits 4")
    written = mine.export(tmp_path / f"small.{suffix}")
    assert written.stat().st_size > 0


def test_blocks_hold_the_codes_of_a_row_one_block_after_another():
    packed = packed_weight(3, 50, 4, 16)
    blocks = Blocks(packed)
    codes = unpack_bits(packed.codes, 4, 50)
    assert blocks.codes.shape == (3, 4, 8)
    assert torch.equal(unpack_bits(blocks.codes, 4, 16).flatten(1)[:, :50], codes)
    assert torch.equal(unpack_bits(blocks.zero, 4, 4), packed.zero)


@pytest.mark.parametrize(
    ("bits", "columns", "group", "method", "product", "table"),
    [
        (4, 64, 16, "rtn", True, True),
        (4, 50, 16, "rtn", True, False),
        (2, 64, 16, "rtn", True, False),
        (4, 64, 16, "hqq", True, False),
        (8, 64, 16, "hqq", False, False),
        (4, 64, 24, "rtn", False, False),
        (4, 20, 64, "rtn", True, False),
    ],
)
def test_onnxruntime_runs_products_and_look_ups_of_these_layouts(bits, columns, group, method, product, table):
    packed = packed_weight(4, columns, bits, group, method)
    assert (multiplies_packed(packed), looks_up_packed(packed)) == (product, table)


def test_the_unpacked_layer_computes_what_the_packed_one_does():
    torch.manual_seed(0)
    layers = (
        nn.Linear(20, 6),
        nn.Linear(20, 6, bias=False),
        nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.Conv1d(4, 8, 3, groups=2, padding="same"),
    )
    for layer, x in zip(layers, (torch.randn(2, 20), torch.randn(2, 20), torch.randn(1, 3, 9, 9), torch.randn(1, 4, 9)), strict=True):
        weight = weight_of(layer)
        packed = packed_kind(layer)(layer, PackedWeight(METHODS["rtn"](weight.flatten(1), 4, 8), 4, weight.shape, weight.dtype))
        plain = packed.kdkit_unpacked()
        assert type(plain) is type(layer)
        torch.testing.assert_close(plain(x), packed(x), atol=1e-6, rtol=1e-5)
        assert plain.bias is layer.bias


def test_scales_are_stored_in_the_graph_as_they_are_in_torch():
    net = packed_net(4, 64, 16, "rtn")
    made = to_onnx(net, Batch((torch.randn(2, 64),)))
    (node,) = (node for node in made.graph().graph.node if node.op_type == "MatMulNBits")
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph().graph.initializer}
    assert torch.equal(torch.from_numpy(held[node.input[2]].copy()).reshape(24, 4), net[0].packed.scale.float())
