"""Traits are the union over a model's modules, and a model that is packed or masked in one layer can be worked on in the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import weight_norm

from kdkit import KdError, Session, Trait
from kdkit.models import traits_of, untouchable

FLOAT = {Trait.FLOAT_WEIGHTS, Trait.FREE_STRUCTURE, Trait.TRAINABLE}


class Packed(nn.Module):
    """A linear layer with its weight in 8 bits."""

    kdkit_traits = frozenset({Trait.PACKED_WEIGHTS})

    def __init__(self, layer: nn.Linear):
        super().__init__()
        weight = layer.weight.detach()
        self.register_buffer("scale", weight.abs().amax(1, keepdim=True) / 127)
        self.register_buffer("packed", (weight / self.scale).round().to(torch.int8))
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.packed.float() * self.scale, self.bias)


class Mask(nn.Module):
    """A parametrization that zeroes the smaller half of a weight."""

    kdkit_traits = frozenset({Trait.MASKS_PENDING})

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("mask", (weight.detach().abs() > weight.detach().abs().median()).float())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def net(packed: int | None = None, masked: int | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    if packed is not None:
        model[packed] = Packed(model[packed])
    if masked is not None:
        parametrize.register_parametrization(model[masked], "weight", Mask(model[masked].weight))
    return model.eval()


def session(model: nn.Module) -> Session:
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
    return Session(model, train=(x, torch.arange(32) % 4), calibration=x, measures=())


MIXED = {"packed": lambda: net(packed=2), "masked": lambda: net(masked=2)}
REASONS = {"packed": "it has packed weights", "masked": "it has pruning masks that are not folded in"}


# What is seen ------------------------------------------------------------------------------------------------------


def test_one_packed_layer_leaves_the_others_their_float_weights() -> None:
    assert traits_of(net(packed=2)) == FLOAT | {Trait.PACKED_WEIGHTS}


def test_a_model_packed_in_every_layer_has_no_float_weights() -> None:
    assert Trait.FLOAT_WEIGHTS not in traits_of(nn.Sequential(Packed(nn.Linear(4, 4)), nn.ReLU(), Packed(nn.Linear(4, 4))))


def test_a_parametrization_declares_its_traits() -> None:
    assert traits_of(net(masked=2)) == FLOAT | {Trait.MASKS_PENDING}


def test_the_masks_of_torch_prune_and_of_torch_ao_are_seen() -> None:
    from torch.ao.pruning.sparsifier.utils import FakeSparsity

    pruned, sparse = net(), net()
    prune.l1_unstructured(pruned[0], "weight", 0.5)
    parametrize.register_parametrization(sparse[0], "weight", FakeSparsity(torch.ones(32, 16)))
    assert Trait.MASKS_PENDING in traits_of(pruned)
    assert Trait.MASKS_PENDING in traits_of(sparse)


def test_a_parametrization_without_declared_traits_adds_none() -> None:
    model = net()
    weight_norm(model[0])
    assert traits_of(model) == FLOAT


def test_a_word_of_a_plugins_own_on_a_layer_is_a_trait_of_the_model() -> None:
    model = net()
    model[0].kdkit_traits = {"prompts_attached"}  # type: ignore[assignment]
    assert traits_of(model) == FLOAT | {"prompts_attached"}


def test_a_model_that_declares_its_form_is_not_looked_into() -> None:
    class Engine(nn.Linear):
        kdkit_traits = frozenset({Trait.ONNX})

    assert traits_of(Engine(2, 2)) == {Trait.ONNX}


def test_a_layer_counts_with_its_parametrizations_alone() -> None:
    model = net(masked=2)
    assert untouchable({"": model, **dict(model.named_modules())}) == dict.fromkeys(("2", "2.parametrizations.weight.0"), REASONS["masked"])


# What stages do ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", MIXED)
@pytest.mark.parametrize("line", ["prune channels --ratio 0.5", "decompose svd --rank 2", "peft lora --rank 2 --steps 2", "tune finetune --layers 4 --steps 2"])
def test_a_stage_works_on_the_float_layers_and_leaves_the_other_bit_for_bit(kind: str, line: str) -> None:
    work = session(MIXED[kind]())
    before = {name: tensor.clone() for name, tensor in work.original.state_dict().items() if name.startswith("2.")}
    work.run(line)
    after = work.head.model.state_dict()
    assert [name for name, tensor in before.items() if not torch.equal(after[name], tensor)] == []
    assert {Trait.PACKED_WEIGHTS if kind == "packed" else Trait.MASKS_PENDING} <= work.head.traits


@pytest.mark.parametrize("line", ["prune channels --ratio 0.5", "decompose svd --rank 2", "peft lora --rank 2 --steps 2"])
def test_a_masked_layer_is_named_in_the_notes_with_the_reason(line: str) -> None:
    work = session(MIXED["masked"]())
    work.run(line)
    assert any("2" in note and REASONS["masked"] in note for note in work.head.notes)


def test_prune_channels_names_the_packed_layer_that_holds_its_neighbour_back() -> None:
    work = session(MIXED["packed"]())
    work.run("prune channels --ratio 0.5")
    assert f"left alone: channels of 0: 2: {REASONS['packed']}" in work.head.notes
    assert work.head.model[4].out_features == 16


@pytest.mark.slow
def test_a_model_with_a_packed_layer_is_exported_and_computes_the_same() -> None:
    work = session(MIXED["packed"]())
    x = torch.randn(4, 16)
    expected = work.original(x)
    work.run("convert onnx")
    assert work.head.traits == {Trait.ONNX, Trait.FLOAT_WEIGHTS}
    torch.testing.assert_close(work.head.model(x), expected)


@pytest.mark.slow
def test_masks_of_any_plugin_are_folded_in_before_an_export() -> None:
    model = MIXED["masked"]()
    work = session(model)
    work.run("convert onnx")
    assert [version.made_by for version in work.versions][1:] == ["prune fold (inserted)", "convert onnx"]
    x = torch.randn(2, 16)
    torch.testing.assert_close(work.head.model(x), model(x))


def test_a_packed_model_of_the_user_is_sent_back_to_its_float_form() -> None:
    packed = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(KdError, match="prune channels needs float weights") as caught:
        session(packed).run("prune channels")
    assert [hint for hint in caught.value.hints if "peft merge" in hint] == []
    assert any("begin with the float model" in hint for hint in caught.value.hints)


def test_where_every_layer_is_masked_each_is_named_with_the_reason() -> None:
    model = net()
    for name in ("0", "2", "4", "6"):
        parametrize.register_parametrization(model.get_submodule(name), "weight", Mask(model.get_submodule(name).weight))
    with pytest.raises(KdError, match="decompose svd: none of the layers can be decomposed") as caught:
        session(model).run("decompose svd --rank 2")
    assert [hint for hint in caught.value.hints if REASONS["masked"] in hint] != []


def test_where_every_layer_is_packed_the_order_says_so() -> None:
    model = nn.Sequential(Packed(nn.Linear(16, 8)), nn.ReLU(), Packed(nn.Linear(8, 4)))
    with pytest.raises(KdError, match="decompose svd needs float weights"):
        session(model).run("decompose svd --rank 2")


def test_channels_beside_a_parametrized_layer_are_left_alone_with_the_reason() -> None:
    model = net()
    weight_norm(model[2])
    work = session(model)
    work.run("prune channels --ratio 0.5")
    assert any("2: its weight is computed by weight_norm (torch.nn.utils.parametrize.remove_parametrizations" in note for note in work.head.notes)
    assert (work.head.model[2].out_features, work.head.model[4].out_features) == (32, 16)


def test_a_model_with_a_layer_in_the_quantized_form_of_torch_can_train_elsewhere() -> None:
    model = net()
    model[2] = torch.ao.quantization.quantize_dynamic(nn.Sequential(model[2]), {nn.Linear}, dtype=torch.qint8)[0]
    work = session(model)
    work.run("tune finetune --steps 2")
    assert not torch.equal(work.head.model[6].weight, work.original[6].weight)
    assert torch.equal(work.head.model[2].weight(), work.original[2].weight())
