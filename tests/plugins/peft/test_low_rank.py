"""Adapters on weights that a model reads directly: torch's own attention and transformer layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models import private_copy
from kdkit.models.traits import Trait, traits_of
from kdkit.pipelines.order import after
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.storage.rebuild import load_tensors, rebuild
from kdkit.storage.structure import describe, tensors
from kdkit.tasks import infer_task
from kdkit_peft.lora import Lora
from kdkit_peft.low_rank import LowRank
from kdkit_peft.merge import Merge

WIDTH = 16


class Net(nn.Module):
    """Tokens, a layer of torch's between two linear ones, and a class."""

    def __init__(self, middle: nn.Module, call: Callable[[nn.Module, Tensor, Tensor], Tensor]):
        super().__init__()
        self.embedding, self.first, self.middle, self.head = nn.Embedding(64, WIDTH), nn.Linear(WIDTH, WIDTH), middle, nn.Linear(WIDTH, 3)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.call(self.middle, self.first(self.embedding(x)), x == 0)
        return self.head(hidden.masked_fill((x == 0)[..., None], 0).mean(1))


def encoder_layer(**options) -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, options.pop("heads", 4), 32, batch_first=True, **options)


def attend(attention: nn.Module, x: Tensor, padding: Tensor) -> Tensor:
    return attention(x, x, x, key_padding_mask=padding)[0]


class Swapped(nn.Module):
    """A layer that takes the time axis first."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(0, 1)).transpose(0, 1)


NETS: dict[str, Callable[[], Net]] = {
    "encoder layer": lambda: Net(encoder_layer(), lambda layer, x, _: layer(x)),
    "encoder layer with padding": lambda: Net(encoder_layer(activation="gelu"), lambda layer, x, padding: layer(x, src_key_padding_mask=padding)),
    "odd heads": lambda: Net(encoder_layer(heads=1), lambda layer, x, _: layer(x)),
    "norm first": lambda: Net(encoder_layer(norm_first=True), lambda layer, x, _: layer(x)),
    "time first": lambda: Net(Swapped(nn.TransformerEncoderLayer(WIDTH, 4, 32)), lambda layer, x, _: layer(x)),
    "encoder with nested tensors": lambda: Net(nn.TransformerEncoder(encoder_layer(), 2), lambda layer, x, padding: layer(x, src_key_padding_mask=padding)),
    "decoder": lambda: Net(nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, 4, 32, batch_first=True), 2), lambda layer, x, _: layer(x, x)),
    "transformer": lambda: Net(nn.Transformer(WIDTH, 4, 1, 1, 32, batch_first=True), lambda layer, x, _: layer(x, x)),
    "attention": lambda: Net(nn.MultiheadAttention(WIDTH, 4, batch_first=True), attend),
    "attention without bias": lambda: Net(nn.MultiheadAttention(WIDTH, 4, bias=False, batch_first=True, add_bias_kv=True), attend),
    "attention to another width": lambda: Net(nn.MultiheadAttention(WIDTH, 4, kdim=8, vdim=4, batch_first=True), lambda layer, x, _: layer(x, x[..., :8], x[..., :4])[0]),
}


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 64, (6, 5), generator=generator)
    ids[::2, 3:] = 0
    return Batch((ids,), labels=torch.arange(6) % 3)


def context(model: nn.Module) -> Context:
    items = batch()
    data = adopt_data([(*items.args, items.labels)])
    return Context(task=infer_task(model, data.example()), objects={"train": data, "example": data})


def net(name: str) -> Net:
    torch.manual_seed(0)
    return NETS[name]().eval()


def adapted(model: nn.Module, **options) -> tuple[nn.Module, list[str]]:
    """The model with adapters, which compute something where they are not trained, and the notes."""
    run = context(model)
    torch.manual_seed(1)
    made = Lora(**{"train": False, **options}).apply(private_copy(model), run)
    if not options.get("train"):
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.3)
    return made.eval(), run.notes


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return batch().call(model)


def matrices(model: nn.Module) -> set[str]:
    """The matrices of the layer in the middle, by the names that they have without adapters."""
    return {name for name, weight in model.middle.named_parameters() if weight.dim() == 2}


def adapted_matrices(model: nn.Module) -> set[str]:
    found = set()
    for name, module in model.middle.named_modules():
        if isinstance(module, LowRank):
            owner, _, key = name.rpartition(".0")[0].rpartition(".parametrizations.") if ".parametrizations." in name else ("", "", name.split(".")[1])
            found.add(f"{owner}.{key}".lstrip("."))
        elif hasattr(module, "lora_A"):
            found.add(f"{name}.weight")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_every_matrix_is_adapted_and_a_merge_keeps_the_outputs_in_each_mode(name):
    model = net(name)
    made, notes = adapted(model)
    assert adapted_matrices(made) == matrices(model)
    assert not any(note.startswith("skipped") for note in notes)
    merged = Merge().apply(private_copy(made), context(made))
    assert not torch.allclose(outputs(made), outputs(model), atol=1e-2)
    torch.testing.assert_close(outputs(merged.eval()), outputs(made), atol=1e-4, rtol=1e-4)
    for each in (made, merged):  # where a gradient is needed, torch takes no fast path
        torch.testing.assert_close(batch().call(each).detach(), outputs(made), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["encoder with nested tensors", "decoder", "attention to another width"])
def test_training_moves_every_adapter_and_leaves_the_weights_bit_for_bit(name):
    model = net(name)
    made, _ = adapted(model, train=True, steps=3, learning_rate=0.05)
    now = {key.replace("parametrizations.", "").replace(".base_layer", "").removesuffix(".original"): value for key, value in made.state_dict().items()}
    assert all(torch.equal(value, now[key]) for key, value in model.state_dict().items())
    moved = [weight.abs().sum() > 0 for key, weight in made.named_parameters() if "lora_B" in key]
    assert len(moved) == len(matrices(model)) + 1
    assert all(moved)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_untrained_adapters_change_nothing_and_a_merge_gives_the_plain_model_back(name):
    model = net(name)
    made = Lora(train=False).apply(private_copy(model), context(model)).eval()
    torch.testing.assert_close(outputs(made), outputs(model), atol=1e-6, rtol=1e-6)
    assert traits_of(made) == after(Lora(), traits_of(model))
    assert Trait.ADAPTERS_ATTACHED in traits_of(made)
    merged = Merge().apply(made, context(model)).eval()
    assert traits_of(merged) == traits_of(model)
    assert {key: type(module) for key, module in merged.named_modules()} == {key: type(module) for key, module in model.named_modules()}
    assert all(torch.equal(value, merged.state_dict()[key]) for key, value in model.state_dict().items())
    assert all(weight.requires_grad for weight in merged.parameters())


def test_the_merged_weight_is_the_formula():
    model = net("attention")
    made, _ = adapted(model, targets=("middle",), rank=2, alpha=6.0)
    low = made.middle.parametrizations.in_proj_weight[0]
    expected = model.middle.in_proj_weight + 3.0 * low.lora_B @ low.lora_A
    merged = Merge().apply(made, context(model))
    torch.testing.assert_close(merged.middle.in_proj_weight, expected.detach())


@pytest.mark.parametrize(("options", "reason"), [({"dora": True}, "where --dora has no form"), ({"dropout": 0.1}, "where --dropout has no form")])
def test_an_option_that_weights_can_not_have_leaves_them_alone_by_name(options, reason):
    made, notes = adapted(net("encoder layer"), **options)
    assert adapted_matrices(made) == set()
    assert any(note.startswith("skipped middle.self_attn") and reason in note for note in notes)


def test_adapters_are_restored_from_a_saved_structure():
    made, _ = adapted(net("encoder with nested tensors"))
    restored = load_tensors(rebuild(net("encoder with nested tensors"), describe(made)), {name: value.clone() for name, value in tensors(made).items()})
    assert torch.equal(outputs(restored), outputs(made))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adapters_of_half_precision_weights_have_float32(dtype):
    made, _ = adapted(net("attention").to(dtype), targets=("middle",))
    assert {weight.dtype for key, weight in made.named_parameters() if "lora_" in key} == {torch.float32}
    assert made.middle.in_proj_weight.dtype == dtype


def test_an_adapter_that_is_not_finite_is_refused_by_the_name_of_its_weight():
    made, _ = adapted(net("attention"), targets=("middle",))
    with torch.no_grad():
        made.middle.parametrizations.in_proj_weight[0].lora_B[0, 0] = torch.nan
    with pytest.raises(KdError, match="the adapter of in_proj_weight of middle holds infinities or NaN"):
        Merge().apply(made, context(made))


def test_an_adapter_under_another_parametrization_is_refused_with_what_folds_both():
    made, _ = adapted(net("attention"), targets=("middle",))
    parametrize.register_parametrization(made.middle, "in_proj_weight", nn.Identity())
    with pytest.raises(KdError, match="another parametrization uses in_proj_weight of middle") as caught:
        Merge().apply(made, context(made))
    assert caught.value.hints == ("torch.nn.utils.parametrize.remove_parametrizations(layer, 'in_proj_weight') folds both in",)


def test_a_linear_layer_whose_weight_a_function_reads_is_adapted_too():
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.inner, self.head = nn.Embedding(64, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(nn.functional.linear(self.embedding(x), self.inner.weight, self.inner.bias).mean(1))

    torch.manual_seed(0)
    model = Reads().eval()
    made, _ = adapted(model)
    assert parametrize.is_parametrized(made.inner, "weight")
    assert not torch.allclose(outputs(made), outputs(model), atol=1e-3)
    torch.testing.assert_close(outputs(Merge().apply(private_copy(made), context(made))), outputs(made), atol=1e-4, rtol=1e-4)


def test_a_pattern_that_names_a_recurrent_layer_is_refused_with_what_trains_it():
    model = Net(nn.GRU(WIDTH, WIDTH, batch_first=True), lambda layer, x, _: layer(x)[0]).eval()
    with pytest.raises(KdError, match="pattern 'middle' fits no Linear.*, only GRU") as caught:
        list(Lora(targets=("middle",)).check(model, context(model)))
    assert "%kd tune finetune --layers PATTERN trains layers of any kind whole" in caught.value.hints
