"""The one training loop: what it sums, how it steps, what it leaves behind."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kdkit.data import Batch, Data, MapDataset
from kdkit.data.datasets import TensorRows
from kdkit.errors import Cancelled, KdError
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import CausalLM, Classification, Regression
from kdkit.training import Step, Term, TrainPart, fit
from kdkit.training.checkpoint import snapshot
from kdkit.training.learning_rate import rate
from kdkit.training.stage import TrainStage
from tests.fixtures.interruption import interrupted, moments
from tests.fixtures.training import Labels, context, in_order, net, points, stage_of, weights

# What a step is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_the_loop_takes_the_very_steps_of_a_handwritten_one(optimizer: str) -> None:
    x, y = points()
    mine, theirs = net(), net()
    fit(mine, [stage_of(epochs=3, optimizer=optimizer, weight_decay=0.01, learning_rate=0.1, schedule="linear")], context(in_order(x, y)))
    kinds = {"sgd": lambda w: torch.optim.SGD(w, 0.1, momentum=0.9, weight_decay=0.01), "adam": lambda w: torch.optim.Adam(w, 0.1, weight_decay=0.01)}
    made = kinds.get(optimizer, lambda w: torch.optim.AdamW(w, 0.1, weight_decay=0.01))(theirs.parameters())
    for step in range(12):
        made.param_groups[0]["lr"] = 0.1 * (1 - step / 12)
        at = slice(step % 4 * 16, step % 4 * 16 + 16)
        nn.functional.cross_entropy(theirs(x[at]), y[at]).backward()
        made.step()
        made.zero_grad()
    assert torch.allclose(weights(mine), weights(theirs), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "accumulate"), [(16, 4), (8, 8), (24, 3), (1, 64)])
def test_a_step_does_not_depend_on_how_it_is_cut_into_batches(size: int, accumulate: int) -> None:
    whole, cut = net().double(), net().double()
    data = MapDataset(TensorRows(Batch((points()[0].double(),), labels=points()[1])), "float64", 16, lambda batch: batch)
    options = {"epochs": 3, "learning_rate": 0.1, "clip": 0.1}
    fit(whole, [stage_of(batch_size=64, **options)], context(data))
    fit(cut, [stage_of(batch_size=size, accumulate=accumulate, **options)], context(data))
    assert torch.allclose(weights(whole), weights(cut), rtol=0, atol=1e-12)
    assert not torch.allclose(weights(whole), weights(net().double()), atol=1e-3)


class Speller(nn.Module):
    """A causal language model of one layer, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(11, 8).double(), nn.Linear(8, 11).double()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.embed(input_ids).cumsum(1))


class Words(Data):
    """Token batches in a fixed order."""

    def batches(self, shuffle: bool = False, seed: int | None = None, batch_size: int | None = None) -> Iterator[Batch]:
        return super().batches(False, 0, None)


def words(padding: int, cuts: tuple[int, ...]) -> Data:
    generator = torch.Generator().manual_seed(0)
    tokens, lengths = torch.randint(1, 11, (8, 7), generator=generator), torch.tensor([7, 3, 5, 2, 6, 7, 2, 4])
    mask = torch.arange(7 + padding)[None] < lengths[:, None]
    tokens = nn.functional.pad(tokens, (0, padding), value=9) * mask
    whole = Batch((), {"input_ids": tokens, "attention_mask": mask.long()})
    return Words(lambda: [whole[start:stop] for start, stop in zip((0, *cuts), (*cuts, 8), strict=True)], "words", 8)


class Spread(TrainPart):
    """A term a token that wants no labels, and is infinite in the padding."""

    def terms(self, step: Step) -> Iterator[Term]:
        values = step.output.square().mean(-1)
        yield Term("spread", values.masked_fill(step.batch.kwargs["attention_mask"] == 0, math.inf))
        yield Term.from_labels(step, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(("padding", "cuts"), [(0, (4,)), (5, ()), (3, (1, 2, 5)), (9, (7,))])
def test_neither_padding_nor_cutting_changes_what_a_language_model_learns(padding: int, cuts: tuple[int, ...]) -> None:
    plain, other = Speller(), Speller()
    for model, data in ((plain, words(0, ())), (other, words(padding, cuts))):
        fit(model, [stage_of(Spread, epochs=4, learning_rate=0.05, accumulate=8)], context(data, CausalLM()))
    assert torch.allclose(weights(plain), weights(other), rtol=0, atol=1e-9)


class Own(TrainPart):
    """A term with a mask of its own."""

    def terms(self, step: Step) -> Iterator[Term]:
        yield Term("own", step.output.square().sum(-1), mask=step.batch.labels == 0)


class Counted(Own):
    def counts(self, batch: Batch) -> dict[str, int]:
        return {"own": int((batch.labels == 0).sum())}


def test_a_term_with_a_mask_is_the_mean_over_what_the_mask_names() -> None:
    x, y = points()
    model, seen = net(), []
    run = context(in_order(x, y, 64), observe=seen.append)
    expected = model(x).square().sum(-1)[y == 0].mean().item()
    fit(model, [stage_of(Own, steps=1)], run)
    assert seen[0].figures["loss"] == pytest.approx(expected, rel=1e-6)


def test_counts_make_a_masked_term_independent_of_the_cut() -> None:
    whole, cut = net(), net()
    fit(whole, [stage_of(Counted, epochs=2, batch_size=64)], context())
    fit(cut, [stage_of(Counted, epochs=2, batch_size=16, accumulate=4)], context())
    assert torch.allclose(weights(whole), weights(cut), atol=1e-6)


def test_a_mask_without_counts_is_refused_where_several_batches_make_a_step() -> None:
    with pytest.raises(KdError, match="'own' has a mask of its own") as caught:
        fit(net(), [stage_of(Own, accumulate=2)], context())
    assert "counts(batch)" in str(caught.value)


class Shapes(TrainPart):
    def __init__(self, make: Callable[[Step], Term]):
        self.make = make

    def terms(self, step: Step) -> Iterator[Term]:
        yield self.make(step)


@pytest.mark.parametrize("make", [lambda s: Term("bad", s.output.mean()), lambda s: Term("bad", s.output.flatten())])
def test_a_term_that_was_reduced_already_is_refused(make: Callable[[Step], Term]) -> None:
    with pytest.raises(KdError, match="term 'bad' has values of shape"):
        fit(net(), [stage_of(lambda: Shapes(make))], context())


def test_a_term_that_does_not_hang_on_the_model_is_refused() -> None:
    with pytest.raises(KdError, match="does not depend on the weights"):
        fit(net(), [stage_of(lambda: Shapes(lambda step: Term("x", torch.ones(step.batch.size))))], context())


def test_a_penalty_counts_once_a_step_however_it_is_cut() -> None:
    class Norm(Labels):
        def terms(self, step: Step) -> Iterator[Term]:
            yield from super().terms(step)
            yield Term("norm", step.model[0].weight.norm(), 0.1, penalty=True)

    whole, cut = net(), net()
    fit(whole, [stage_of(Norm, epochs=2, batch_size=64)], context())
    fit(cut, [stage_of(Norm, epochs=2, batch_size=16, accumulate=4)], context())
    assert torch.allclose(weights(whole), weights(cut), atol=1e-6)


def test_values_of_an_item_count_as_their_mean_where_the_task_counts_no_tokens() -> None:
    model, x, seen = net(), points()[0], []
    run = context(in_order(*points(), 64), observe=seen.append)
    expected = model(x).square().mean().item()
    fit(model, [stage_of(lambda: Shapes(lambda step: Term("x", step.output.square())), steps=1)], run)
    assert seen[0].figures["loss"] == pytest.approx(expected, rel=1e-6)


def test_a_weight_may_follow_the_progress_and_is_asked_once_a_term() -> None:
    asked: list[float] = []

    def ramp(progress: float) -> float:
        asked.append(progress)
        return 0.0

    class Ramped(TrainPart):
        def terms(self, step: Step) -> Iterator[Term]:
            yield Term.from_labels(step, ramp)

    model = net()
    before = weights(model)
    fit(model, [stage_of(Ramped, epochs=1)], context())
    assert asked == [0.0, 1 / 3, 2 / 3, 1.0]
    assert torch.equal(weights(model), before)


# Together ------------------------------------------------------------------------------------------------------------


class Projected(TrainPart):
    """Trains a projector beside the model."""

    log: ClassVar[list[str]] = []

    def __init__(self, name: str = "projected"):
        self.name = name

    def open(self, model: nn.Module) -> None:
        self.log.append(f"open {self.name}")
        torch.manual_seed(5)
        self.modules["projector"] = nn.Linear(3, 2)
        self.before = snapshot(self.modules)

    def terms(self, step: Step) -> Iterator[Term]:
        yield Term("projected", (self.modules["projector"](step.output) - 1).square().mean(-1), 0.3)

    def close(self, model: nn.Module) -> None:
        self.log.append(f"close {self.name}")
        Projected.moved = any(not torch.equal(self.before[name], now) for name, now in snapshot(self.modules).items())


def test_together_is_the_sum_of_the_terms_of_both() -> None:
    class Both(Projected):
        def terms(self, step: Step) -> Iterator[Term]:
            yield Term.from_labels(step)
            yield from super().terms(step)

    one, two, seen = net(), net(), []
    options = {"epochs": 2, "learning_rate": 0.01}
    run = context(observe=seen.append)
    fit(one, [stage_of(Labels, "first", **options), stage_of(Projected, "second")], run)
    fit(two, [stage_of(Both, **options)], context())
    assert torch.equal(weights(one), weights(two))
    last = seen[-1].figures
    assert last["loss"] == pytest.approx(last["tune.first.label"] + 0.3 * last["tune.second.projected"])


def test_what_trains_beside_the_model_never_ends_in_it() -> None:
    model = net()
    keys = list(model.state_dict())
    fit(model, [stage_of(Projected, epochs=2)], context())
    assert Projected.moved
    assert list(model.state_dict()) == keys


def test_parts_are_closed_in_reverse_order_also_after_an_error() -> None:
    class Failing(Projected):
        def terms(self, step: Step) -> Iterator[Term]:
            raise RuntimeError("no")

    for last, error in ((Projected, None), (Failing, RuntimeError)):
        Projected.log.clear()
        stages = [stage_of(lambda: Projected("a"), "a"), stage_of(lambda last=last: last("b"), "b")]
        if error:
            with pytest.raises(error):
                fit(net(), stages, context())
        else:
            fit(net(), stages, context())
        assert Projected.log == ["open a", "open b", "close b", "close a"]


def test_loop_options_of_a_later_stage_are_named_as_not_used() -> None:
    run = context()
    fit(net(), [stage_of(name="a", epochs=1), stage_of(name="b", epochs=5, clip=1)], run)
    assert any("--epochs --clip not used" in note for note in run.notes)


def test_each_hook_is_called_in_its_turn() -> None:
    calls: list[str] = []

    class Watched(Labels):
        def after_step(self, step: Step) -> None:
            calls.append(f"step {step.index}")

        def after_epoch(self, epoch: int) -> None:
            calls.append(f"epoch {epoch}")

    fit(net(), [stage_of(Watched, epochs=2, accumulate=2)], context())
    assert calls == ["step 0", "step 1", "epoch 1", "step 2", "step 3", "epoch 2"]


# Length and schedule -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "steps"), [({"epochs": 0.5}, 2), ({"epochs": 2.25}, 9), ({"epochs": 0.01}, 1), ({"steps": 7}, 7), ({"epochs": 1, "accumulate": 3}, 2)]
)
def test_training_is_as_long_as_was_asked(options: dict[str, Any], steps: int) -> None:
    seen = []
    run = context(observe=seen.append)
    fit(net(), [stage_of(**options)], run)
    assert (seen[-1].done, seen[-1].total) == (steps, steps)


def test_a_stream_without_end_trains_for_a_number_of_steps() -> None:
    def forever() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield points(16)

    run = context(Data(forever, "a stream"))
    fit(net(), [stage_of(steps=5)], run)
    assert run.notes[-1].endswith("in 5 steps")


@pytest.mark.slow
@given(st.sampled_from(["constant", "linear", "cosine"]), st.integers(1, 50), st.floats(0, 0.95))
def test_a_schedule_rises_then_never_rises_again_and_no_step_is_at_zero(schedule: str, total: int, warmup: float) -> None:
    rates = [rate(schedule, index, total, warmup) for index in range(total)]
    top = min(total, max(1, math.ceil(warmup * total - 1e-9)))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top - 1 :] == sorted(rates[top - 1 :], reverse=True)
    assert all(0 < each <= 1 for each in rates)
    assert max(rates) == 1


def test_schedules_are_the_formulas_written_out() -> None:
    assert [rate("cosine", index, 4) for index in range(4)] == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])
    assert [rate("linear", index, 5, 0.2) for index in range(5)] == pytest.approx([1, 1, 0.75, 0.5, 0.25])
    assert [rate("constant", index, 4, 0.5) for index in range(4)] == [0.5, 1, 1, 1]


def test_the_gradient_is_clipped_to_its_norm() -> None:
    model = net()
    before = weights(model)
    fit(model, [stage_of(steps=1, optimizer="sgd", learning_rate=1.0, clip=0.01, schedule="constant")], context())
    assert (weights(model) - before).norm().item() == pytest.approx(0.01, rel=1e-3)


# What is left behind -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_model_comes_out_as_clean_as_it_went_in(precision: str) -> None:
    model = net(dropout=0.1)
    model[0].weight.requires_grad_(False)
    keys, attributes = list(model.state_dict()), set(vars(model))
    trained = fit(model, [stage_of(precision=precision)], context())
    assert trained is model
    assert not model.training
    assert all(weight.grad is None for weight in model.parameters())
    assert [weight.requires_grad for weight in model.parameters()] == [False, True, True, True]
    assert (list(model.state_dict()), set(vars(model))) == (keys, attributes)
    assert torch.equal(copy.deepcopy(model)(points()[0]), model(points()[0]))


def test_fits_of_different_precision_follow_one_another_in_one_kernel() -> None:
    done = [fit(net(), [stage_of(precision=precision)], context()) for precision in ("bf16", "fp32", "bf16")]
    assert torch.equal(weights(done[0]), weights(done[2]))
    assert not torch.equal(weights(done[0]), weights(done[1]))
    assert all(weight.dtype == torch.float32 for weight in done[0].parameters())


def test_an_accelerator_of_the_users_own_is_left_alone() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    theirs = Accelerator(cpu=True, mixed_precision="bf16")
    fit(net(), [stage_of()], context())
    assert AcceleratorState().mixed_precision == theirs.mixed_precision == "bf16"
    AcceleratorState._reset_state(True)


def test_it_trains_also_where_gradients_are_off() -> None:
    on, off = net(), net()
    fit(on, [stage_of()], context())
    with torch.no_grad():
        fit(off, [stage_of()], context())
        assert not torch.is_grad_enabled()
    assert torch.equal(weights(on), weights(off))


def test_frozen_weights_do_not_move() -> None:
    model = net()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    fit(model, [stage_of(weight_decay=0.5)], context())
    assert torch.equal(model[0].weight, before)


def test_the_users_random_numbers_go_on_as_if_nothing_had_been() -> None:
    model, run = net(dropout=0.2), context()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    fit(model, [stage_of()], run)
    assert torch.equal(torch.rand(3), expected)


def test_two_runs_with_one_seed_are_equal_to_the_bit_and_with_another_are_not() -> None:
    def run(seed: int) -> Tensor:
        return weights(fit(net(dropout=0.3), [stage_of(epochs=3)], context(seed=seed)))

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


# Validation ----------------------------------------------------------------------------------------------------------


class Scripted(Classification):
    """Its accuracy on validation data is read from a script."""

    def __init__(self, script: list[float]):
        super().__init__()
        self.script = iter(script)

    def evaluate(self, call: Any, data: Data) -> dict[str, float]:
        assert not torch.is_grad_enabled()
        return {"accuracy": next(self.script)}


class Remembered(Labels):
    """Keeps what the weights were after each epoch."""

    epochs: ClassVar[list[Tensor]] = []

    def open(self, model: nn.Module) -> None:
        self.model = model
        self.epochs.clear()

    def after_epoch(self, epoch: int) -> None:
        assert self.model.training
        self.epochs.append(weights(self.model))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "kept", "ran"),
    [
        ([0.1, 0.9, 0.3, 0.4], {"keep": "best"}, 2, 4),
        ([0.1, 0.9, 0.3, 0.4], {"keep": "last"}, 4, 4),
        ([0.5, 0.9, 0.9, 0.4], {"keep": "best", "patience": 2}, 2, 4),
        ([0.5, 0.4, 0.6, 0.7], {"keep": "last", "patience": 1}, 2, 2),
        ([math.nan, 0.2, math.nan, 0.1], {"keep": "best"}, 2, 4),
    ],
)
def test_the_epoch_that_validation_chooses_is_kept(script: list[float], options: dict[str, Any], kept: int, ran: int) -> None:
    run = context(task=Scripted(script), held_out=adopt_data(points(16)))
    model = fit(net(), [stage_of(Remembered, epochs=4, validation="held_out", **options)], run)
    assert len(Remembered.epochs) == ran
    assert torch.equal(weights(model), Remembered.epochs[kept - 1])


def test_lower_is_better_where_the_task_says_so() -> None:
    class Down(Scripted):
        better = "lower"

    run = context(task=Down([0.3, 0.2, 0.9]), held_out=adopt_data(points(16)))
    model = fit(net(), [stage_of(Remembered, epochs=3, validation="held_out", keep="best")], run)
    assert torch.equal(weights(model), Remembered.epochs[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": "eval"}, "the data the session tests on"),
        ({"validation": "same"}, "the data the session tests on"),
        ({"keep": "best"}, "--keep best needs validation data"),
        ({"patience": 2}, "--patience 2 needs validation data"),
    ],
)
def test_choosing_without_data_to_choose_by_is_refused(options: dict[str, Any], message: str) -> None:
    test = adopt_data(points(16))
    with pytest.raises(KdError, match=message):
        fit(net(), [stage_of(**options)], context(eval=test, same=test))


# Bad input -----------------------------------------------------------------------------------------------------------


class Breaking(TrainPart):
    """Its second term is nan from the third step on."""

    def terms(self, step: Step) -> Iterator[Term]:
        yield Term.from_labels(step)
        yield Term("odd", step.output.square().mean(-1) * (math.nan if step.index >= 2 else 1.0))


def test_a_loss_that_is_not_finite_is_named_with_its_step_and_a_remedy() -> None:
    with pytest.raises(KdError, match="odd is nan at step 3") as caught:
        fit(net(), [stage_of(Breaking, epochs=5)], context())
    assert "--learning-rate 0.0001" in str(caught.value)


def test_weights_that_break_in_the_last_step_are_seen() -> None:
    class Late(Labels):
        def terms(self, step: Step) -> Iterator[Term]:
            yield Term("root", (step.output * 0).abs().sqrt().sum(-1))

    with pytest.raises(KdError, match=r"weights of 0\.weight are not finite"):
        fit(net(), [stage_of(Late, steps=1)], context())


def test_data_without_labels_is_refused_before_training() -> None:
    class Labelled(TrainStage):
        """Wants labels."""

        id: ClassVar[str] = "tune.labelled"

        def required_inputs(self) -> Any:
            from kdkit.stages.stage import Needs

            return Needs(train=True, labels=True)

        def part(self, model: nn.Module, context: Context) -> TrainPart:
            return Labels()

    with pytest.raises(KdError, match="tune labelled needs labels"):
        fit(net(), [Labelled()], context(points()[0]))


def test_data_that_gives_nothing_is_refused() -> None:
    with pytest.raises(KdError, match="no batch"):
        fit(net(), [stage_of()], Context(Classification(), objects={"train": Data(list, "nothing")}))


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(KdError, match="all 4 are frozen"):
        fit(net().requires_grad_(False), [stage_of()], context())


def test_half_precision_on_a_cpu_is_refused() -> None:
    with pytest.raises(KdError, match="fp16 needs a GPU"):
        fit(net(), [stage_of(precision="fp16")], context())


def batch_normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def test_batch_norm_and_batches_of_one_are_distinguished_from_a_last_single_item() -> None:
    with pytest.raises(KdError, match="batch norm can't train on a batch of one item"):
        fit(batch_normed(), [stage_of(batch_size=1)], context(points(1)))
    run = context(points(33))
    fit(batch_normed(), [stage_of(epochs=2)], run)
    assert any("left out one item" in note for note in run.notes)
    assert run.notes[-1].endswith("in 4 steps")


def test_batches_of_one_all_count_where_batch_norm_sees_places() -> None:
    torch.manual_seed(0)
    maps = nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(8, 3))
    run = context(points(5))
    fit(maps, [stage_of(batch_size=1, epochs=1)], run)
    assert not any("left out" in note for note in run.notes)
    assert run.notes[-1].endswith("in 5 steps")


def test_a_user_who_cancels_stops_within_a_step() -> None:
    run, steps = context(), []

    class Stopping(Labels):
        def after_step(self, step: Step) -> None:
            steps.append(step.index)
            if step.index == 2:
                run.channel.cancel()

    with pytest.raises(Cancelled):
        fit(net(), [stage_of(Stopping, epochs=50)], run)
    assert steps == [0, 1, 2]


def test_the_curve_can_be_drawn_from_the_progress() -> None:
    seen: list = []
    run = context(observe=seen.append)
    fit(net(), [stage_of(epochs=10, learning_rate=0.05)], run)
    losses = [each.figures["loss"] for each in seen if "loss" in each.figures]
    assert len(losses) >= 10
    assert losses[-1] < losses[0]
    assert all("learning_rate" in each.figures for each in seen)


# Going on ------------------------------------------------------------------------------------------------------------


class Interrupting(Projected):
    """Stops the training like a person would, in the middle of an epoch."""

    at: ClassVar[int] = -1

    def terms(self, step: Step) -> Iterator[Term]:
        yield Term.from_labels(step)
        yield from super().terms(step)

    def after_step(self, step: Step) -> None:
        if step.index == self.at:
            raise KeyboardInterrupt


def resumable(folder: Path, **options: Any) -> TrainStage:
    asked = {"epochs": 4, "optimizer": "adamw", "learning_rate": 0.02, "warmup": 0.1, "validation": "held_out", "keep": "best", "checkpoint": str(folder)}
    return stage_of(Interrupting, **asked | options)


def dropout_and_norm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.3), nn.Linear(12, 3))


@pytest.mark.slow
@pytest.mark.parametrize("at", [5, 9, 15])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_resumed_training_equals_an_uninterrupted_one_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, optimizer: str) -> None:
    held_out = adopt_data(points(16, seed=9))
    straight = fit(dropout_and_norm(), [resumable(tmp_path / "a", optimizer=optimizer)], context(held_out=held_out))
    monkeypatch.setattr(Interrupting, "at", at)
    with pytest.raises(KeyboardInterrupt):
        fit(dropout_and_norm(), [resumable(tmp_path / "b", optimizer=optimizer)], context(held_out=held_out))
    monkeypatch.setattr(Interrupting, "at", -1)
    torch.manual_seed(99)
    run = context(held_out=held_out)
    resumed = fit(dropout_and_norm(), [resumable(tmp_path / "b", optimizer=optimizer, resume=True)], run)
    assert torch.equal(weights(resumed), weights(straight))
    assert f"resumed after epoch {(at + 1) // 4 if (at + 1) % 4 else at // 4}" in run.notes


def test_resuming_a_finished_training_gives_its_result_again(tmp_path: Path) -> None:
    held_out = adopt_data(points(16, seed=9))
    done = fit(dropout_and_norm(), [resumable(tmp_path, patience=1)], context(held_out=held_out))
    again = fit(dropout_and_norm(), [resumable(tmp_path, patience=1, resume=True)], context(held_out=held_out))
    assert torch.equal(weights(done), weights(again))


@pytest.mark.parametrize("what", ["stages", "model", "seed", "steps"])
def test_the_checkpoint_of_another_training_is_refused(tmp_path: Path, what: str) -> None:
    fit(net(), [stage_of(checkpoint=str(tmp_path))], context())
    other = context(points(128)) if what == "steps" else context(seed=4 if what == "seed" else 3)
    rate_ = 0.5 if what == "stages" else 1e-3
    with pytest.raises(KdError, match=f"of another training; its {what} differs"):
        fit(net(int(what == "model")), [stage_of(checkpoint=str(tmp_path), resume=True, learning_rate=rate_)], other)


def test_a_checkpoint_that_is_missing_damaged_or_newer_is_one_message(tmp_path: Path) -> None:
    again = stage_of(checkpoint=str(tmp_path), resume=True)
    with pytest.raises(KdError, match="there is no checkpoint"):
        fit(net(), [again], context())
    fit(net(), [stage_of(checkpoint=str(tmp_path))], context())
    facts = json.loads((tmp_path / "training.json").read_text())
    (tmp_path / "training.json").write_text(json.dumps(facts | {"kdkit_training": 99}))
    with pytest.raises(KdError, match="has format 99"):
        fit(net(), [again], context())
    (tmp_path / "training.json").write_text(json.dumps(facts)[:-9])
    with pytest.raises(KdError, match="damaged"):
        fit(net(), [again], context())
    (tmp_path / "training.json").write_text(json.dumps(facts))
    tensors = tmp_path / facts["tensors"]
    tensors.write_bytes(tensors.read_bytes()[:-20])
    with pytest.raises(KdError, match="damaged"):
        fit(net(), [again], context())


def test_a_folder_that_cannot_be_written_to_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KdError, match="can't write the checkpoint"):
        fit(net(), [stage_of(checkpoint=str(tmp_path / "file"))], context())


def test_only_the_newest_epoch_is_kept_and_nothing_in_it_is_a_pickle(tmp_path: Path) -> None:
    fit(net(), [stage_of(epochs=3, checkpoint=str(tmp_path))], context())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-3.safetensors", "training.json"]


# Faults at any point -------------------------------------------------------------------------------------------------


def clean() -> bool:
    """Whether torch's modes and accelerate's globals are as outside any training."""
    from accelerate.state import AcceleratorState, PartialState

    return torch.is_grad_enabled() and not (torch.is_autocast_enabled("cpu") or AcceleratorState._shared_state or PartialState._shared_state)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_moment_leaves_no_trace() -> None:
    stage, run, model = stage_of(epochs=2, precision="bf16"), context(), net()

    def train() -> None:
        fit(model, [stage], run)

    expected = weights(fit(net(), [stage], run))
    for moment in moments(train):
        interrupted(train, moment)
        assert clean()
    assert torch.equal(weights(fit(net(), [stage], run)), expected)


# Several processes ---------------------------------------------------------------------------------------------------


def _in_a_process(folder: str) -> None:
    torch.set_num_threads(1)
    model = fit(net().double(), [stage_of(Counted, epochs=2, batch_size=16, learning_rate=0.1)], context(_doubles()))
    torch.save(weights(model), f"{folder}/{torch.distributed.get_rank()}.pt")


def _doubles() -> Data:
    x, y = points(72)
    return MapDataset(TensorRows(Batch((x.double(),), labels=y)), "float64", 16, lambda batch: batch)


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batches(tmp_path: Path) -> None:
    from accelerate import debug_launcher

    debug_launcher(_in_a_process, (str(tmp_path),), num_processes=2)
    alone = fit(net().double(), [stage_of(Counted, epochs=2, batch_size=16, accumulate=2, learning_rate=0.1)], context(_doubles()))
    for rank in range(2):
        assert torch.allclose(torch.load(tmp_path / f"{rank}.pt"), weights(alone), rtol=0, atol=1e-9)


@pytest.mark.slow
def test_regression_trains_on_numbers() -> None:
    x = points()[0]
    model = nn.Linear(6, 1)
    run = context((x, x.sum(1)), Regression())
    fit(model, [stage_of(epochs=30, learning_rate=0.1, optimizer="sgd")], run)
    assert torch.allclose(model.weight, torch.ones(1, 6), atol=0.05)
