"""peft lora: what trains, what holds still, and where adapters may stand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models.traits import traits_of
from kdkit.pipelines.order import after
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.stages.stage import Needs
from kdkit.stages.validation import validate_stage
from kdkit.storage.rebuild import empty_copy, load_tensors, rebuild
from kdkit.storage.structure import describe, tensors
from kdkit.tasks import infer_task
from kdkit.training import fit
from kdkit_peft.lora import Lora
from kdkit_peft.merge import Merge
from tests.fixtures import zoo

NAMES = ["mlp", "cnn", "tiny_bert", "tiny_llama", "tiny_gpt2"]


def context(model: nn.Module, batch: Batch) -> Context:
    data = adopt_data([(batch.kwargs | {"labels": batch.labels}) if batch.kwargs else (*batch.args, batch.labels)])
    return Context(task=infer_task(model, data.example()), objects={"train": data, "example": data})


def run(model: nn.Module, batch: Batch, **options) -> tuple[nn.Module, list[str]]:
    about = context(model, batch)
    torch.manual_seed(0)
    return Lora(**{"steps": 3, "learning_rate": 0.05, **options}).apply(copy.deepcopy(model), about), about.notes


def output(model: nn.Module, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        given = batch.call(model)
    return given if isinstance(given, torch.Tensor) else given.logits


def adapters(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if hasattr(module, "lora_A")]


def base_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items() if ".lora_" not in name}


def test_the_stage_is_valid():
    assert list(validate_stage(Lora)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"dora": True}, {"rslora": True, "init": "gaussian", "rank": 3}])
def test_attached_and_untrained_the_model_gives_what_it_gave(name, options):
    model, batch = zoo.MODELS[name](), zoo.batch(name)
    adapted, _ = run(model, batch, train=False, **options)
    assert type(adapted) is type(model)
    assert adapters(adapted)
    assert any("magnitude" in key for key in adapted.state_dict()) == options.get("dora", False)
    torch.testing.assert_close(output(adapted, batch), output(model, batch), atol=1e-6, rtol=1e-5)
    assert not any(module.training for module in adapted.modules())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_training_moves_the_adapters_and_leaves_all_else_bit_for_bit(name):
    model, batch = zoo.MODELS[name](), zoo.batch(name)
    adapted, notes = run(model, batch)
    before = model.state_dict()
    now = base_tensors(adapted)
    assert before.keys() == now.keys()
    assert all(torch.equal(before[key], now[key]) for key in before)
    assert all(weight.abs().sum() > 0 for key, weight in adapted.state_dict().items() if "lora_B" in key)
    assert not torch.equal(output(adapted, batch), output(model, batch))
    assert {"lora_" in key for key, weight in adapted.named_parameters() if weight.requires_grad} == {True}
    assert "adapters of rank 8" in notes[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_traits_seen_are_the_traits_declared(name):
    model, batch = zoo.MODELS[name](), zoo.batch(name)
    adapted, _ = run(model, batch, train=False)
    assert traits_of(adapted) == after(Lora(), traits_of(model))
    merged = Merge().apply(adapted, context(model, batch))
    assert traits_of(merged) == after(Merge(), traits_of(adapted)) == traits_of(model)


@pytest.mark.slow
def test_training_lowers_the_loss():
    model, batch = zoo.tiny_bert(), zoo.batch("tiny_bert")
    about = context(model, batch)
    data = about.data("train")
    before = about.task.evaluate(lambda item: item.call(model), data)["loss"]
    adapted = Lora(steps=30, learning_rate=0.02).apply(copy.deepcopy(model), about)
    assert about.task.evaluate(lambda item: item.call(adapted), data)["loss"] < 0.8 * before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp", ["first", "second"]),
        ("cnn", ["stem", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2"]),
        ("depthwise", ["stem", "expand.0", "project.0"]),
        ("tiny_gpt2", [f"transformer.h.{layer}.{name}" for layer in range(2) for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]),
    ],
)
def test_by_default_linear_layers_adapt_but_the_head_and_convolutions_where_there_are_none(name, expected):
    adapted, _ = run(zoo.MODELS[name](), zoo.batch(name), train=False)
    assert adapters(adapted) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head"), [("tiny_bert", "classifier"), ("tiny_llama", "lm_head")])
def test_the_head_is_left_alone_by_default_and_adapted_when_named(name, head):
    model, batch = zoo.MODELS[name](), zoo.batch(name)
    linear = [layer for layer, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert adapters(run(model, batch, train=False)[0]) == [layer for layer in linear if layer != head]
    assert adapters(run(model, batch, train=False, targets=(head,))[0]) == [head]


def test_targets_name_exactly_what_they_fit():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.block = nn.ModuleDict({"fc": nn.Linear(4, 4)})

        def forward(self, x):
            return self.block["fc"](self.fc(x))

    model, batch = Twice().eval(), Batch((torch.randn(3, 4),), labels=torch.zeros(3, dtype=torch.long))
    assert adapters(run(model, batch, train=False, targets=("fc",))[0]) == ["fc"]


def test_skip_and_also_train_are_left_without_adapters_and_only_the_second_trains():
    model, batch = zoo.tiny_bert(), zoo.batch("tiny_bert")
    adapted, _ = run(model, batch, targets=("query", "key"), skip=("layer.1",), also_train=("classifier",))
    assert adapters(adapted) == [f"bert.encoder.layer.0.attention.self.{name}" for name in ("query", "key")]
    assert not torch.equal(adapted.classifier.weight, model.classifier.weight)
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad and "lora_" not in name}
    assert trained == {"classifier.weight", "classifier.bias"}


def test_norms_that_train_update_their_statistics_and_others_do_not():
    model, batch = zoo.cnn(), zoo.batch("cnn")
    adapted, _ = run(model, batch, also_train=("bn",))
    assert not torch.equal(adapted.bn.running_mean, model.bn.running_mean)
    assert torch.equal(adapted.blocks[0].bn1.running_mean, model.blocks[0].bn1.running_mean)


@pytest.mark.parametrize("option", ["targets", "skip", "also_train"])
def test_a_pattern_that_fits_nothing_names_near_ones_before_any_work(option):
    model = zoo.mlp()
    with pytest.raises(KdError, match="'secnd' fits no") as caught:
        list(Lora(**{option: ("secnd",)}).check(model, context(model, zoo.batch("mlp"))))
    assert "did you mean second?" in caught.value.hints


def test_a_convolution_whose_weight_is_read_directly_is_skipped_by_name():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(16, 16), nn.Conv1d(5, 5, 1), nn.Linear(80, 3)

        def forward(self, x):
            return self.head(nn.functional.conv1d(self.first(x), self.second.weight).flatten(1))

    batch = Batch((torch.randn(4, 5, 16),), labels=torch.zeros(4, dtype=torch.long))
    adapted, notes = run(Reads().eval(), batch, train=False, targets=("first", "second"))
    assert adapters(adapted) == ["first"]
    assert "skipped second: Reads reads its weight directly and would bypass an adapter" in notes


def test_tied_weights_are_not_adapted():
    with pytest.raises(KdError, match="no layer can be adapted") as caught:
        run(zoo.tiny_gpt2(), zoo.batch("tiny_gpt2"), train=False, targets=("lm_head",))
    assert caught.value.hints[0] == "lm_head: its weight is tied to transformer.wte, which a merge would change too"


def test_a_layer_in_two_places_is_not_adapted():
    shared = nn.Linear(8, 8)
    model, batch = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(8, 2)).eval(), Batch((torch.randn(3, 8),), labels=torch.zeros(3, dtype=torch.long))
    with pytest.raises(KdError, match="no layer can be adapted") as caught:
        run(model, batch, train=False)
    assert "0: it has 2 names: 0, 2" in caught.value.hints


def test_a_model_that_is_one_layer_is_refused():
    with pytest.raises(KdError, match="no layer can be adapted") as caught:
        run(nn.Linear(4, 2), Batch((torch.randn(3, 4),), labels=torch.zeros(3, dtype=torch.long)), train=False, targets=("*",))
    assert "the model: it is the whole model; put it into an nn.Sequential" in caught.value.hints


def test_labels_are_needed_only_for_the_tasks_loss():
    assert Lora().required_inputs() == Needs(example=True, train=True, labels=True, packages=("peft",))
    assert Lora(loss=0).required_inputs() == Needs(example=True, train=True, packages=("peft",))
    assert Lora(train=False).required_inputs() == Needs(example=True, packages=("peft",))


@pytest.mark.parametrize("options", [{"loss": 0}, {"train": False}])
def test_without_a_loss_of_its_own_it_looks_at_no_labels(options):
    model = zoo.mlp()
    part = Lora(**options).part(model, context(model, zoo.batch("mlp")))
    assert list(part.terms(step=None)) == []


def test_together_with_another_stage_its_loss_trains_the_adapters_alone():
    from kdkit_distill.response.soft import Soft

    model, batch = zoo.mlp(), zoo.batch("mlp")
    about = context(model, batch)
    teacher = zoo.Mlp().eval()
    about.objects = {**about.objects, "teacher": teacher}
    adapted = fit(copy.deepcopy(model), [Lora(loss=0, steps=3), Soft(labels=False)], about)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in base_tensors(adapted).items())
    assert adapted.first.lora_B["default"].weight.abs().sum() > 0
    assert not adapted.first.base_layer.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_models_keep_half_outputs(dtype):
    model, batch = zoo.mlp().to(dtype), zoo.batch("mlp")
    batch = Batch((batch.args[0].to(dtype),), labels=batch.labels)
    adapted, _ = run(model, batch, train=False)
    assert output(adapted, batch).dtype == dtype
    assert torch.equal(output(adapted, batch), output(model, batch))


@pytest.mark.slow
def test_the_forecast_counts_the_adapters_and_trains_nothing():
    model, batch = zoo.tiny_bert(), zoo.batch("tiny_bert")
    predicted = Lora().forecast(copy.deepcopy(model), context(model, batch)).model
    adapted, _ = run(model, batch)
    assert [(name, weight.shape) for name, weight in predicted.named_parameters()] == [(name, weight.shape) for name, weight in adapted.named_parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "cnn", "tiny_bert", "tiny_gpt2"])
@pytest.mark.parametrize("dora", [False, True])
def test_attached_adapters_are_restored_on_a_fresh_instance(name, dora):
    model, batch = zoo.MODELS[name](), zoo.batch(name)
    adapted, _ = run(model, batch, dora=dora)
    values = {key: tensor.clone() for key, tensor in tensors(adapted).items()}
    restored = load_tensors(rebuild(empty_copy(model), describe(adapted)), values)
    assert torch.equal(output(restored, batch), output(adapted, batch))
    merged = Merge().apply(restored, context(model, batch))
    torch.testing.assert_close(output(merged, batch), output(adapted, batch), atol=1e-5, rtol=1e-4)


def test_the_line_of_a_stage_reads_as_it_was_typed():
    assert Lora(rank=4, targets=("query", "value"), train=False).line() == "peft lora --targets query value --no-train --rank 4"
