"""quantize half: the size, the overflow checks, and what other stages do with the result."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdkit import Context, KdError, Session
from kdkit.data import Batch
from kdkit.measurement.size import size_bytes
from kdkit.session.adoption import adopt_data
from kdkit.stages.validation import validate_stage
from kdkit.tasks import Classification
from kdkit_quantize.half import Half
from tests.fixtures import zoo


def run(model: nn.Module, batch: Batch, **options) -> tuple[nn.Module, list[str]]:
    context = Context(task=Classification(), stage="quantize half", objects={"example": adopt_data([batch])})
    return Half(**options).apply(copy.deepcopy(model), context), context.notes


def output(model: nn.Module, name: str) -> torch.Tensor:
    given = zoo.batch(name).call(model.eval())
    return (given if isinstance(given, torch.Tensor) else given.logits if hasattr(given, "logits") else given[0]).detach()


def test_it_is_a_valid_stage():
    assert not list(validate_stage(Half))


@pytest.mark.parametrize("name", zoo.MODELS)
@pytest.mark.parametrize(("dtype", "least"), [("fp16", 0.99999), ("bf16", 0.999)])
def test_every_model_is_half_as_large_called_as_before_and_answers_nearly_alike(name, dtype, least):
    model = zoo.MODELS[name]()
    small, notes = run(model, zoo.batch(name), dtype=dtype)
    assert notes == []
    assert size_bytes(small) < 0.51 * size_bytes(model) + 64
    assert nn.functional.cosine_similarity(output(small, name).float().flatten(), output(model, name).flatten(), 0) > least


def test_weights_that_float16_cannot_hold_are_refused_by_name_before_any_work():
    model = zoo.mlp()
    model.second.weight.data[0, 0] = 1e5
    (problem,) = Half(dtype="fp16").check(model, Context(task=Classification()))
    assert problem == "quantize half: second.weight holds 1e+05, and fp16 nothing above 6.55e+04; use --dtype bf16"
    assert not list(Half(dtype="bf16").check(model, Context(task=Classification())))


def test_an_output_that_overflows_is_refused_by_the_name_of_the_layer():
    model = zoo.mlp()
    model.second.bias.data[:] = 60000.0
    model.second.weight.data *= 1e4
    with pytest.raises(KdError, match="in fp16 the output of second overflows on the example batch") as caught:
        run(model, zoo.batch("mlp"), dtype="fp16")
    assert "--dtype bf16 has the range of float32" in caught.value.hints
    assert run(model, zoo.batch("mlp"), dtype="bf16")[0].second.weight.dtype == torch.bfloat16


def test_what_is_not_finite_in_float32_either_is_not_called_overflow():
    model = zoo.two_heads()
    model.one.bias.data[0] = torch.inf
    assert run(model, zoo.batch("two_heads"), dtype="fp16")[0].one.weight.dtype == torch.float16


def test_numbers_that_vanish_are_counted():
    model = zoo.mlp()
    model.head.weight.data[0, :3] = 1e-9
    assert run(model, zoo.batch("mlp"), dtype="fp16")[1] == ["3 of 1,732 numbers are too small for fp16 and became 0"]


def test_a_model_that_is_in_that_precision_already_is_refused():
    (problem,) = Half().check(zoo.mlp().bfloat16(), Context(task=Classification()))
    assert problem == "quantize half: the model is in bf16 already"


def test_a_version_is_measured_saved_loaded_and_trained_further(tmp_path):
    mine = Session(zoo.cnn(), train=[zoo.batch("cnn")], eval=[zoo.batch("cnn")], measures=["quality", "size"])
    made = mine.run("quantize half")
    mine.save(tmp_path / "small")
    loaded = Session.open(tmp_path / "small").head.model
    assert torch.equal(zoo.batch("cnn").call(loaded), zoo.batch("cnn").call(made.model))
    assert loaded.head.weight.dtype == torch.bfloat16
    assert mine.run("tune finetune --epochs 1").model.head.weight.dtype == torch.bfloat16


def test_packed_weights_are_computed_with_in_half_precision_afterwards():
    packed = Session(zoo.mlp(), eval=[zoo.batch("mlp")])
    packed.run("quantize weights --bits 4 --layers second")
    half = packed.run("quantize half --dtype fp16").model
    assert (half.first.weight.dtype, half.second.weight.dtype, half.second.packed.codes.dtype) == (torch.float16, torch.float16, torch.uint8)


@pytest.mark.slow
def test_a_half_version_is_exported_in_float32():
    mine = Session(zoo.mlp(), eval=[zoo.batch("mlp")])
    half = mine.run("quantize half --dtype fp16").model
    made = mine.run("convert onnx")
    torch.testing.assert_close(zoo.batch("mlp").call(made.model), zoo.batch("mlp").call(half).float(), atol=2e-3, rtol=2e-3)
