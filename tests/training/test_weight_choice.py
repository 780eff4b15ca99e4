"""Weights that are chosen from gradients: the promised ratio, the same in every division of a step, kept in checkpoints, and a reason where there is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import nn

from kdkit.training import Pull, Step, Term, TrainPart, fit
from kdkit.training.gradient_balance import GradientBalance, TermValue
from kdkit.training.weight_choice import STEPS, Measured, WeightChoice
from tests.fixtures.training import Checkpointed, Labels, context, in_order, net, points, stage_of, weights


class Pulled(TrainPart):
    """The labels, and a term that should pull."""

    def __init__(self, ratio: float = 4.0, constant: float = 50.0, scale: float = 1.0, labels: bool = True, value: Callable[..., Any] | None = None):
        self.ratio, self.constant, self.scale, self.labels = ratio, constant, scale, labels
        self.value = value or (lambda output: output.square().mean(-1))

    def terms(self, step: Step) -> Iterator[Term]:
        if self.labels:
            yield Term.from_labels(step, 0.5)
        yield Term("square", self.scale * self.value(step.output), 0.5 * self.constant, pull=Pull("square", 0.5 * self.ratio, constant=self.constant))


class Fixed(Pulled):
    """The same terms at the published weight."""

    def terms(self, step: Step) -> Iterator[Term]:
        return (replace(term, pull=None) for term in super().terms(step))


def first_step(run: Any) -> dict[str, Any]:
    (balance,) = [each for each in run.attachments if isinstance(each, GradientBalance)]
    return {term.name: term for term in balance.gradient_norms}


def chosen(run: Any) -> list[str]:
    return [note for note in run.notes if "--weight" in note]


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-2, 1.0, 30.0])
@pytest.mark.parametrize("ratio", [0.5, 4.0])
def test_the_gradient_has_the_promised_ratio_to_that_of_the_labels_whatever_the_scale_of_the_loss(scale: float, ratio: float) -> None:
    run = context(in_order(*points()))
    fit(net(), [stage_of(lambda: Pulled(ratio, scale=scale), epochs=1)], run)
    found = first_step(run)
    assert found["square"].gradient == pytest.approx(ratio * found["label"].gradient, rel=1e-4)


@pytest.mark.slow
def test_the_scale_of_the_loss_does_not_change_the_training() -> None:
    trained = []
    for scale in (0.01, 1.0):
        model = net()
        fit(model, [stage_of(lambda scale=scale: Pulled(scale=scale), epochs=2)], context())
        trained.append(weights(model))
    assert torch.allclose(*trained, atol=1e-5)


def test_the_weight_is_the_geometric_mean_of_the_first_steps_and_fixed_afterwards() -> None:
    seen: list[float] = []
    choice = WeightChoice()
    for step in range(2 * STEPS):
        weight = nn.Parameter(torch.tensor([1.0]))
        terms = [TermValue("label", weight.sum(), 1.0, 1.0, label_loss=True), TermValue("a", 2.0**step * weight.sum(), 3.0, 3.0, Pull("a", 6.0, constant=3.0))]
        if choice.is_open(terms):
            choice.measure(terms, [weight])
        seen.append(choice.applied(terms)[1].factor)
    assert seen[0] == pytest.approx(2.0)
    assert seen[STEPS - 1 :] == [pytest.approx(2.0 / 2 ** ((STEPS - 1) / 2))] * (STEPS + 1)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_accumulated_batches_those_of_the_first() -> None:
    both = []
    for _ in range(2):
        model, run = net(dropout=0.3), context()
        fit(model, [stage_of(Pulled, epochs=2, accumulate=2)], run)
        both.append((weights(model), chosen(run)))
    assert torch.equal(both[0][0], both[1][0])
    assert both[0][1] == both[1][1] != []


@pytest.mark.slow
@pytest.mark.parametrize("precise", [torch.float64])
def test_accumulated_batches_are_the_same_step_as_one_batch(precise: torch.dtype) -> None:
    x, y = points(64)
    found = []
    cuts: list[dict[str, Any]] = [{"batch_size": 64}, {"batch_size": 16, "accumulate": 4}]
    for options in cuts:
        model, run = net().to(precise), context(in_order(x.to(precise), y))
        fit(model, [stage_of(Pulled, epochs=8, optimizer="sgd", learning_rate=0.1, **options)], run)
        found.append((weights(model), chosen(run), [(step, figures) for step, figures in run.attachments[-1].terms["loss"]]))
    assert torch.allclose(found[0][0], found[1][0], rtol=0, atol=1e-7)
    assert found[0][1] == found[1][1] != []
    assert [value for _, value in found[0][2]] == pytest.approx([value for _, value in found[1][2]], rel=1e-5)


def test_in_a_group_a_part_is_compared_with_the_labels_of_another() -> None:
    run = context(in_order(*points()))
    fit(net(), [stage_of(Labels, name="labels", epochs=1), stage_of(lambda: Pulled(labels=False), name="other")], run)
    found = first_step(run)
    assert found["tune.other.square"].gradient == pytest.approx(0.5 * 4 * found["tune.labels.label"].gradient, rel=1e-4)
    assert chosen(run)[0].startswith("tune.other.square: --weight ")


def test_without_labels_the_first_terms_are_the_ones_to_compare_with() -> None:
    class Two(TrainPart):
        def terms(self, step: Step) -> Iterator[Term]:
            for name, values in (("one", step.output.square().mean(-1)), ("two", step.output.abs().mean(-1))):
                yield Term(name, values, 7.0, pull=Pull(name, 3.0, constant=7.0))

    run = context(in_order(*points()))
    fit(net(), [stage_of(Two, epochs=1)], run)
    found = first_step(run)
    assert found["one"].weight == 7.0
    assert found["two"].gradient == pytest.approx(3 * found["one"].gradient, rel=1e-4)
    assert chosen(run)[0] == "one: --weight 7 as published; none was chosen: no other loss to compare it with"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (lambda output: 0.0 * output.sum(-1), "the gradient of square is 0 at the first steps"),
        (lambda output: (output - output.detach()).abs().sqrt().sum(-1), "the gradient of square is not finite at the first steps"),
    ],
)
def test_a_gradient_that_says_nothing_leaves_the_published_weight_with_a_reason(value: Any, reason: str) -> None:
    weight = nn.Parameter(torch.tensor([[1.0, 2.0]]))
    terms = [TermValue("label", weight.sum(), 1.0, 1.0, label_loss=True), TermValue("square", value(weight).sum(), 50.0, 50.0, Pull("square", 4.0, constant=50.0))]
    choice = WeightChoice()
    choice.measure(terms, [weight])
    assert [term.factor for term in choice.applied(terms)] == [1.0, 1.0]
    assert list(choice.notes()) == [f"square: --weight 50 as published; none was chosen: {reason}"]


def test_a_label_loss_without_a_gradient_leaves_the_published_weight() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    choice = WeightChoice()
    terms = [TermValue("label", 0 * weight.sum(), 1.0, 1.0, label_loss=True), TermValue("a", weight.sum(), 5.0, 5.0, Pull("a", 1.0, constant=5.0))]
    choice.measure(terms, [weight])
    choice.applied(terms)
    assert "the gradient of the label loss is 0" in next(choice.notes())


@pytest.mark.slow
def test_a_resumed_training_has_the_weight_of_the_first_run(tmp_path: Path) -> None:
    class Stops(Pulled):
        def after_epoch(self, epoch: int) -> None:
            if epoch == 1:
                raise KeyboardInterrupt

    options: dict[str, Any] = {"epochs": 4, "checkpoint": str(tmp_path)}
    whole, run = net(), context()
    fit(whole, [stage_of(Pulled, epochs=4)], run)
    with pytest.raises(KeyboardInterrupt):
        fit(net(), [stage_of(Stops, **{**options, "checkpoint": str(tmp_path / "early")})], context())
    resumed, again = net(), context()

    class StopsLater(Pulled):
        def after_epoch(self, epoch: int) -> None:
            if epoch == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(net(), [stage_of(StopsLater, **options)], context())
    fit(resumed, [stage_of(Pulled, resume=True, **options)], again)
    assert torch.equal(weights(whole), weights(resumed))
    assert chosen(run) == chosen(again) != []


def test_a_term_that_starts_later_is_measured_when_it_comes_beside_the_labels() -> None:
    class Later(TrainPart):
        def terms(self, step: Step) -> Iterator[Term]:
            if step.progress > 0.5:
                yield Term.from_labels(step)
            yield Term("square", step.output.square().mean(-1), 50.0, pull=Pull("square", 4.0, constant=50.0))

    run = context()
    fit(net(), [stage_of(Later, epochs=4)], run)
    assert "chosen from the gradients" in chosen(run)[0]


@pytest.mark.slow
@given(some.lists(some.one_of(some.none(), some.floats(1e-3, 50)), min_size=1, max_size=STEPS))
def test_processes_agree_on_one_factor(factors: list[float | None]) -> None:
    """Each process measures its own batch; all get the geometric mean."""
    everywhere = [{"a": Measured(factor, "" if factor else "it is 0")} for factor in factors]
    found = []
    for mine in everywhere:
        choice = WeightChoice(lambda objects: everywhere)
        weight = nn.Parameter(torch.tensor([1.0]))
        choice.measure([TermValue("label", weight.sum(), 1.0, 1.0, label_loss=True), TermValue("a", weight.sum(), 1.0, 1.0, Pull("a", 1.0))], [weight])
        found.append(choice.factor("a"))
        assert mine in everywhere
    known = [math.log(factor) for factor in factors if factor is not None]
    assert found == [pytest.approx(math.exp(sum(known) / len(known)) if known else 1.0)] * len(found)


def test_a_graph_that_allows_no_second_look_keeps_the_published_weight_from_the_first_step() -> None:
    """Reentrant checkpointing gives `torch.autograd.grad` no gradient of a layer's weights, and no error."""
    run, plain = context(in_order(*points())), context(in_order(*points()))
    model, fixed = Checkpointed(*net()), Checkpointed(*net())
    fit(model, [stage_of(Pulled, epochs=1)], run)
    fit(fixed, [stage_of(Fixed, epochs=1)], plain)
    assert chosen(run) == ["square: --weight 50 as published; none was chosen: the gradients of single terms could not be computed"]
    assert torch.equal(weights(model), weights(fixed))
