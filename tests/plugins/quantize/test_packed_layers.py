"""Packed layers: each computes what the layer with the dequantized weight computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdkit import KdError, Session
from kdkit.measurement.size import bytes_by_name, count_parameters, parameters_by_name, size_bytes
from kdkit.models.traits import Trait, traits_of
from kdkit_quantize.group_quantization import round_to_nearest
from kdkit_quantize.packed_layers import is_transposed, packed_kind
from kdkit_quantize.packed_weight import PackedWeight
from kdkit_quantize.packing_stage import weight_of
from tests.fixtures import zoo


def packed(layer: nn.Module, bits: int = 4, group: int = 16) -> nn.Module:
    weight = weight_of(layer)
    return packed_kind(layer)(layer, PackedWeight(round_to_nearest(weight.flatten(1), bits, group), bits, weight.shape, weight.dtype))


def conv1d_of_transformers() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(6, 20)


ROWS = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 4, 7, 7, generator=torch.Generator().manual_seed(0))
LAYERS = {
    "linear": (lambda: nn.Linear(20, 6), ROWS),
    "linear without bias": (lambda: nn.Linear(20, 6, bias=False), ROWS),
    "linear of transformers": (conv1d_of_transformers, ROWS),
    "embedding": (lambda: nn.Embedding(9, 20, padding_idx=2), torch.tensor([[0, 8], [2, 2]])),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), IMAGES),
    "grouped convolution": (lambda: nn.Conv2d(4, 8, 3, groups=4, dilation=2, bias=False), IMAGES),
    "circular convolution": (lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="circular"), IMAGES),
    "convolution along one axis": (lambda: nn.Conv1d(4, 6, 3, padding="same"), IMAGES[..., 0]),
    "convolution along three axes": (lambda: nn.Conv3d(4, 6, 2), IMAGES[..., None].repeat(1, 1, 1, 1, 3)),
}


def made(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    make, x = LAYERS[name]
    return make(), x


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_a_packed_layer_computes_what_the_layer_does_with_the_dequantized_weight(name, bits):
    layer, x = made(name)
    small, twin = packed(layer, bits), copy.deepcopy(layer)
    dense = small.packed()
    twin.weight.data = dense.T if is_transposed(layer) else dense
    torch.testing.assert_close(small(x), twin(x), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(small.weight, twin.weight.data, atol=0, rtol=0)
    assert not torch.equal(twin(x), layer(x))


@pytest.mark.parametrize("name", LAYERS)
def test_the_parameters_are_counted_and_the_bytes_are_those_of_the_packed_integers(name):
    layer, _ = made(name)
    small = packed(layer, 4)
    rows, columns = weight_of(layer).flatten(1).shape
    groups = rows * -(-columns // 16)
    bias = 0 if getattr(layer, "bias", None) is None else 4 * layer.bias.numel()
    assert count_parameters(small) == count_parameters(layer)
    assert size_bytes(small) == rows * -(-columns // 2) + 2 * groups + groups + bias


def test_parameters_and_bytes_are_stated_under_the_same_name():
    net = nn.Sequential(packed(made("linear")[0]))
    assert parameters_by_name(net) == {"0.bias": 6, "0.packed.codes": 120}
    assert bytes_by_name(net)["0.packed.codes"] == 60


def test_a_shared_packed_weight_counts_once():
    layer, _ = made("linear without bias")
    one = packed(layer)
    net = nn.Sequential(one, packed_kind(layer)(layer, one.packed))
    assert (count_parameters(net), size_bytes(net)) == (count_parameters(one), size_bytes(one))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_packed_model_follows_a_change_of_its_dtype(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(packed(nn.Embedding(9, 20)), packed(nn.Linear(20, 6))).to(dtype)
    output = net(torch.tensor([1, 2]))
    assert (output.dtype, net[1].weight.dtype, net[0].weight.dtype) == (dtype, dtype, dtype)
    assert net[1].packed.codes.dtype == torch.uint8


@pytest.mark.parametrize("name", LAYERS)
def test_a_gradient_flows_through_to_the_input(name):
    layer, x = made(name)
    if not x.is_floating_point():
        return
    x = x.clone().requires_grad_()
    packed(layer)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_a_packed_layer_keeps_its_bias_its_mode_and_its_place_among_the_classes():
    layer = made("linear")[0].eval()
    small = packed(layer)
    assert (small.bias is layer.bias, small.training, isinstance(small, nn.Linear)) == (True, False, True)
    assert traits_of(small) == {Trait.PACKED_WEIGHTS}


def test_torchs_attention_reads_the_packed_weight_of_its_projection():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 2).eval()
    x = torch.randn(3, 1, 16)
    small = copy.deepcopy(attention)
    small.out_proj = packed(attention.out_proj, 8)
    torch.testing.assert_close(small(x, x, x)[0], attention(x, x, x)[0], atol=0.01, rtol=0)
    assert not torch.equal(small(x, x, x)[0], attention(x, x, x)[0])


# adapters beside packed weights


def session(name: str = "mlp") -> Session:
    return Session(zoo.MODELS[name](), train=[zoo.batch(name)], eval=[zoo.batch(name)], measures=["quality"])


def output(model, name: str = "mlp") -> torch.Tensor:
    given = zoo.batch(name).call(model)
    return (given if isinstance(given, torch.Tensor) else given.logits).detach()


@pytest.mark.parametrize("name", ["mlp", "tiny_llama"])
@pytest.mark.parametrize("pack", ["quantize weights --bits 4", "quantize binary", "encode share --bits 3"])
def test_adapters_train_beside_packed_weights_which_stay_as_they_are(name, pack):
    mine = session(name)
    before = mine.run(pack)
    after = mine.run("peft lora --epochs 10 --learning-rate 0.01")
    codes = [value for key, value in before.model.state_dict().items() if key.endswith("packed.codes")]
    assert all(torch.equal(one, other) for one, other in zip(codes, [v for k, v in after.model.state_dict().items() if k.endswith("packed.codes")], strict=True))
    assert after["loss"] < before["loss"]
    assert Trait.PACKED_WEIGHTS in after.traits


def test_adapters_that_are_not_trained_leave_the_outputs_as_they_were():
    mine = session()
    before = mine.run("quantize weights --bits 4")
    assert torch.equal(output(mine.run("peft lora --no-train").model), output(before.model))


@pytest.mark.parametrize("name", ["mlp", "tiny_llama"])
def test_a_merge_makes_float_layers_that_compute_the_same_and_names_them(name):
    mine = session(name)
    mine.run("quantize weights --bits 4 --no-embeddings")
    adapted = mine.run("peft lora --epochs 3 --learning-rate 0.01")
    merged = mine.run("peft merge")
    torch.testing.assert_close(output(merged.model, name), output(adapted.model, name), atol=1e-4, rtol=1e-4)
    assert any(note.startswith("in float now, since packed integers can't hold the sum: ") for note in merged.notes)
    assert Trait.FLOAT_WEIGHTS in merged.traits


def test_a_model_can_be_packed_again_after_a_merge():
    mine = session()
    mine.run("quantize weights --bits 4\npeft lora --epochs 1\npeft merge\nquantize weights --bits 8")
    assert mine.head.model.first.packed.bits == 8


def test_layers_that_share_a_packed_weight_are_left_alone_by_name():
    mine = session("tiny_gpt2")
    mine.run("quantize weights --bits 4")
    with pytest.raises(KdError) as caught:
        mine.run("peft lora --no-train --targets lm_head")
    assert any("lm_head: its weight is tied to transformer.wte, which a merge would change too" in hint for hint in caught.value.hints)


def test_an_adapted_packed_version_comes_back_bit_for_bit(tmp_path):
    mine = session()
    made = mine.run("quantize weights --bits 4\npeft lora --epochs 1")
    mine.save(tmp_path / "small")
    assert torch.equal(output(Session.open(tmp_path / "small").head.model), output(made.model))


def test_convolutions_are_left_alone_since_peft_builds_adapters_from_their_class():
    mine = session("cnn")
    mine.run("quantize weights --bits 4")
    with pytest.raises(KdError, match="no layer can be adapted") as caught:
        mine.run("peft lora --no-train")
    assert "stem: it has packed weights" in caught.value.hints
