"""Adapters on layers of other people's models: merged they compute the same, or the layer is left alone by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models import private_copy
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import infer_task
from kdkit_peft.lora import Lora
from kdkit_peft.merge import Merge

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
GEOMETRIES = [
    {},
    {"stride": 2, "padding": 1},
    {"dilation": 2},
    {"dilation": 2, "padding": "same"},
    {"padding": "valid", "padding_mode": "circular"},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": 1, "padding_mode": "replicate"},
    {"padding": "same", "dilation": 2, "padding_mode": "circular"},
]


def context(model: nn.Module, batch: Batch) -> Context:
    data = adopt_data([(*batch.args, batch.labels)] if batch.args else [batch.kwargs | {"labels": batch.labels}])
    return Context(task=infer_task(model, data.example()), objects={"train": data, "example": data})


def adapted(model: nn.Module, batch: Batch, **options) -> tuple[nn.Module, list[str]]:
    """The model with trained adapters, and the notes."""
    run = context(model, batch)
    torch.manual_seed(0)
    model = Lora(**{"train": False, **options}).apply(private_copy(model), run)
    for name, weight in model.named_parameters():
        if "lora_B" in name or "lora_embedding_B" in name:
            nn.init.normal_(weight)
    return model.eval(), run.notes


def difference(model: nn.Module, batch: Batch) -> float:
    """By how much a merge changes the outputs, as a share of their largest value."""
    with torch.no_grad():
        before = batch.call(model)
        after = batch.call(Merge().apply(private_copy(model), context(model, batch)).eval())
    before, after = (given if isinstance(given, torch.Tensor) else given.logits for given in (before, after))
    return float((before - after).abs().max() / before.abs().max())


@pytest.mark.parametrize("dimensions", CONVOLUTIONS)
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_merged_convolution_computes_what_it_computed_with_its_adapter(dimensions: int, dora: bool, geometry: dict) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(CONVOLUTIONS[dimensions](3, 6, 3, **geometry), nn.Flatten()).eval()
    batch = Batch((torch.randn(2, 3, *(7,) * dimensions),), labels=torch.zeros(2, dtype=torch.long))
    made, _ = adapted(net, batch, targets=("0",), dora=dora)
    assert difference(made, batch) < 1e-5


def test_an_adapter_of_peft_that_pads_differently_is_not_merged() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    net = inject_adapter_in_model(LoraConfig(target_modules=["0"]), nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect")))
    with pytest.raises(KdError, match="the adapter of 0 has padding_mode zeros where the layer has reflect, so a merge would change the outputs"):
        Merge().apply(net, context(nn.Sequential(nn.Flatten()), Batch((torch.zeros(2, 3),), labels=torch.zeros(2, dtype=torch.long))))


@pytest.mark.parametrize(
    ("layer", "options", "reason"),
    [
        (nn.Conv2d(4, 8, 3, groups=2), {}, "grouped convolutions can't be merged"),
        (nn.Conv3d(4, 8, (1, 1, 3)), {}, "3-d convolutions whose kernel begins with 1 x 1"),
        (nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular"), {"dora": True, "dropout": 0.1}, "pads with zeros in training, and the layer pads with circular"),
        (parametrizations.weight_norm(nn.Conv2d(4, 8, 3)), {}, "remove_parametrizations(layer, 'weight') makes it a parameter"),
        (prune.l1_unstructured(nn.Conv2d(4, 8, 3), "weight", 0.5), {}, "torch.nn.utils.prune.remove(layer, 'weight') folds them in"),
    ],
)
def test_a_layer_whose_adapter_could_not_be_merged_is_left_alone_by_name(layer: nn.Module, options: dict, reason: str) -> None:
    shape = (5,) * (layer.weight.dim() - 2)
    net = nn.Sequential(private_copy(layer), nn.Flatten(), nn.LazyLinear(8), nn.Linear(8, 3)).eval()
    batch = Batch((torch.randn(2, 4, *shape),), labels=torch.zeros(2, dtype=torch.long))
    with torch.no_grad():
        batch.call(net)
    made, notes = adapted(net, batch, targets=("0", "2"), **options)
    assert any(note.startswith("skipped 0: ") and reason in note for note in notes)
    assert difference(made, batch) < 1e-5


def language_model(kind: str) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    common = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1}
    more = {
        "Mamba": {"state_size": 4},
        "Mamba2": {"state_size": 4, "head_dim": 8, "num_heads": 8, "n_groups": 1},
        "Mixtral": {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "num_local_experts": 4},
    }[kind]
    return getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**common, **more)).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("Mamba", "mixer.out_proj: peft supports no adapter on out_proj of a mamba model"),
        ("Mamba2", "mixer.out_proj: peft supports no adapter on out_proj of a mamba2 model"),
        ("Mixtral", "experts: MixtralExperts keeps its weights in gate_up_proj (4, 128, 32)"),
    ],
)
def test_by_default_layers_that_no_adapter_fits_are_named_and_the_others_adapted(kind: str, reason: str) -> None:
    model, ids = language_model(kind), torch.randint(1, 60, (2, 6))
    batch = Batch(kwargs={"input_ids": ids}, labels=ids.clone())
    made, notes = adapted(model, batch)
    assert any(reason in note for note in notes)
    assert difference(made, batch) < 1e-5


class Reader(nn.Module):
    def __init__(self, middle: nn.Module):
        super().__init__()
        self.embedding, self.middle, self.hidden, self.head = nn.Embedding(64, 16), middle, nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = self.middle(self.embedding(x))
        return self.head(self.hidden((given[0] if isinstance(given, tuple) else given).mean(1)))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_layers_are_named_with_what_trains_them_and_the_others_adapted(kind: type[nn.RNNBase]) -> None:
    net, batch = Reader(kind(16, 16, batch_first=True)).eval(), Batch((torch.randint(0, 64, (2, 5)),), labels=torch.zeros(2, dtype=torch.long))
    made, notes = adapted(net, batch)
    assert [name for name, module in made.named_modules() if hasattr(module, "lora_A")] == ["hidden"]
    skipped = [note for note in notes if note.startswith("skipped middle: ")]
    assert len(skipped) == 1
    assert skipped[0].endswith("no adapter fits them, and %kd tune finetune --layers NAME trains them")
    assert difference(made, batch) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adapters_of_half_precision_layers_train_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype).eval()
    batch = Batch((torch.randn(16, 8).to(dtype),), labels=torch.randint(0, 3, (16,)))
    made = Lora(steps=5, learning_rate=0.05, targets=("0",)).apply(private_copy(net), context(net, batch))
    trained = [weight for name, weight in made.named_parameters() if "lora_B" in name]
    assert {weight.dtype for weight in trained} == {torch.float32}
    assert all(weight.abs().sum() > 0 and torch.isfinite(weight).all() for weight in trained)
    assert difference(made, batch) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("targets", [(), ("*",)])
def test_transposed_convolutions_are_named_and_the_others_adapted(targets: tuple[str, ...]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, stride=2), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 1), nn.Flatten()).eval()
    batch = Batch((torch.randn(2, 3, 4, 4),), labels=torch.zeros(2, dtype=torch.long))
    made, notes = adapted(net, batch, targets=targets)
    assert "skipped 2: peft supports no adapter on ConvTranspose2d" in notes
    assert difference(made, batch) < 1e-5
