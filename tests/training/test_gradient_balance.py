"""The balance at the first step: true gradients, an untouched training, and a warning that helps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import kdkit
from kdkit.training import Step, Term, TrainPart, fit
from kdkit.training.curve import Curve
from kdkit.training.gradient_balance import GradientBalance, TermGradient, TermValue, gradient_norms, heaviest
from tests.fixtures.training import Checkpointed, Labels, context, in_order, net, points, stage_of, weights


class Pair(TrainPart):
    """The labels, and another term."""

    def __init__(self, weight: float | Callable[[float], float] = 0.5, name: str = "square", grow: float = 1.0):
        self.weight, self.name, self.grow = weight, name, grow

    def terms(self, step: Step) -> Iterator[Term]:
        yield Term.from_labels(step)
        yield Term(self.name, self.grow * step.output.square().mean(-1), self.weight)


def balance_of(run: Any) -> list[GradientBalance]:
    return [each for each in run.attachments if isinstance(each, GradientBalance)]


def notes(run: Any, what: str) -> list[str]:
    return [note for note in run.notes if what in note]


def test_it_tells_the_value_weight_and_gradient_of_each_term_as_written_out() -> None:
    x, y = points()
    model, run = net(), context(in_order(x, y))
    fresh = net()
    output = fresh(x[:16])
    label, square = nn.functional.cross_entropy(output, y[:16]), output.square().mean()
    expected = []
    for value, weight in ((label, 1.0), (square, 0.5)):
        gradients = torch.autograd.grad(weight * value, list(fresh.parameters()), retain_graph=True)
        expected.append((value.item(), weight, torch.cat([each.flatten() for each in gradients]).norm().item()))
    fit(model, [stage_of(Pair, epochs=1)], run)
    found = [(pull.value, pull.weight, pull.gradient) for pull in balance_of(run)[0].gradient_norms]
    assert found == [pytest.approx(each, rel=1e-5) for each in expected]
    assert len(balance_of(run)) == 1
    assert notes(run, "first step (value x weight, gradient norm): label ")


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"precision": "bf16"}, {"clip": 0.1}])
def test_the_training_is_the_same_to_the_bit(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen, unseen = net(dropout=0.5), net(dropout=0.5)
    run = context()
    fit(seen, [stage_of(Pair, epochs=2, **options)], run)
    assert balance_of(run)
    monkeypatch.setattr("kdkit.training.loop.Loop._balance", lambda *args: None)
    blind = context()
    fit(unseen, [stage_of(Pair, epochs=2, **options)], blind)
    assert not balance_of(blind)
    assert torch.equal(weights(seen), weights(unseen))


def test_only_the_first_batch_of_the_first_step_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = torch.autograd.grad

    def counted(*args: Any, **named: Any) -> Any:
        calls.append(1)
        return real(*args, **named)

    monkeypatch.setattr("torch.autograd.grad", counted)
    fit(net(), [stage_of(Pair, epochs=3, accumulate=2)], context())
    assert len(calls) == 2


def test_a_single_term_is_not_looked_at() -> None:
    run = context()
    fit(net(), [stage_of(Labels, epochs=1)], run)
    assert not balance_of(run)
    assert not notes(run, "first step")


def test_a_resumed_training_does_not_tell_it_again(tmp_path: Path) -> None:
    class Stops(Pair):
        def after_epoch(self, epoch: int) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

    options: dict[str, Any] = {"epochs": 3, "checkpoint": str(tmp_path)}
    with pytest.raises(KeyboardInterrupt):
        fit(net(), [stage_of(Stops, **options)], context())
    run = context()
    fit(net(), [stage_of(Pair, resume=True, **options)], run)
    assert not balance_of(run)
    curve = next(each for each in run.attachments if isinstance(each, Curve))
    assert (curve.steps, curve.terms["label"][0][0]) == (12, 1)


def test_accumulated_batches_are_reported_as_the_whole_step() -> None:
    x, y = points(16)
    both = torch.cat([x, x]), torch.cat([y, y])
    found = []
    cuts: list[dict[str, Any]] = [{"batch_size": 16, "accumulate": 2}, {"batch_size": 32}]
    for options in cuts:
        run = context(in_order(*both))
        fit(net(), [stage_of(Pair, epochs=1, **options)], run)
        found.append([(pull.value, pull.gradient) for pull in balance_of(run)[0].gradient_norms])
    assert found[0] == [pytest.approx(each, rel=1e-5) for each in found[1]]


def test_a_term_that_warms_up_is_reported_with_the_largest_weight_it_will_have() -> None:
    run = context()
    fit(net(), [stage_of(lambda: Pair(lambda progress: 4 * progress * (1 - progress)), epochs=1)], run)
    later = balance_of(run)[0].gradient_norms[1]
    assert (later.weight, later.later, later.gradient > 0) == (1.0, True, True)
    assert "later" in repr(balance_of(run)[0])
    assert "x 1 later" in notes(run, "first step")[0]


def test_a_weight_that_falls_to_zero_is_reported_as_it_is_at_first() -> None:
    weight = torch.ones(1, requires_grad=True)
    pull = gradient_norms([TermValue("a", weight.sum(), 0.5, lambda progress: 0.5 * (1 - progress))], [weight])[0]  # type: ignore[list-item]
    assert (pull.weight, pull.later) == (0.5, False)
    assert heaviest(lambda progress: -3 * progress) == -3


def test_terms_of_one_name_count_together() -> None:
    weight = torch.tensor([2.0], requires_grad=True)
    shares = [TermValue("a", (3 * weight).sum(), 1.0, 1.0), TermValue("a", (-3 * weight).sum(), 1.0, 1.0), TermValue("b", weight.sum(), 2.0, 2.0)]
    found = gradient_norms(shares, [weight])  # type: ignore[list-item]
    assert [(pull.name, pull.value, pull.gradient) for pull in found] == [("a", 0.0, 0.0), ("b", 2.0, 2.0)]


def test_only_the_weights_of_the_model_count_and_not_those_beside_it() -> None:
    class Beside(TrainPart):
        @property
        def modules(self) -> nn.ModuleDict:
            return self.held

        def __init__(self) -> None:
            self.held = nn.ModuleDict({"head": nn.Linear(3, 3)})

        def terms(self, step: Step) -> Iterator[Term]:
            yield Term.from_labels(step)
            yield Term("size", step.output.square().mean(-1))
            yield Term("own", self.held["head"](step.output.detach()).square().mean(-1), 1000.0)

    run = context()
    fit(net(), [stage_of(Beside, epochs=1)], run)
    assert [pull.name for pull in balance_of(run)[0].gradient_norms] == ["label", "size"]
    assert not notes(run, "dominates")


@pytest.mark.parametrize(("ratio", "reported"), [(99.0, False), (101.0, True)])
def test_it_warns_above_a_hundred_to_one(ratio: float, reported: bool) -> None:
    found = GradientBalance([TermGradient("label", 1.0, 1.0, 0.02), TermGradient("hints", 1.0, 1.0, 0.02 * ratio)])
    assert bool(found.warning) == reported
    assert "hints dominates label" in found.warning or not reported


def test_what_is_zero_but_for_rounding_is_not_dominated() -> None:
    gradient_norms = [
        TermGradient("label", 1.0, 1.0, 0.5),
        TermGradient("soft", 1e-9, 1.0, 1e-9),
        TermGradient("none", 0.0, 1.0, 0.0),
        TermGradient("wild", 1.0, 1.0, float("inf")),
    ]
    assert not GradientBalance(gradient_norms).warning


def test_what_is_alike_already_is_not_dominated() -> None:
    assert not GradientBalance([TermGradient("label", 0.7, 0.5, 0.08), TermGradient("ema", 3.8e-6, 0.5, 0.0004)]).warning
    assert GradientBalance([TermGradient("label", 0.7, 0.5, 0.08), TermGradient("similarity", 1e-4, 1.0, 0.0004)]).warning


def test_the_remedy_makes_the_gradients_even() -> None:
    """What the warning proposes, done, leaves a ratio of one."""
    x, y = torch.randn(64, 6), torch.arange(64) % 3
    session = kdkit.Session(net(), train=(x, y), eval=(x, y), teacher=net(5), measures=("quality",))
    dominated = session.run("distill soft --epochs 1 --weight 5000")
    warning = next(note for note in dominated.notes if "dominates" in note)
    assert warning.startswith("soft dominates label: at the first step its gradient is")
    option = warning.split("; ")[1].removesuffix(" would balance them")
    assert option.startswith("--weight ")
    cured = session.run(f"distill soft --epochs 1 {option}", on="@base")
    label, soft = next(each for each in cured.attachments if isinstance(each, GradientBalance)).gradient_norms
    assert soft.gradient == pytest.approx(label.gradient, rel=0.1)
    assert not any("dominates" in note for note in cured.notes)


def test_a_dominated_technique_is_the_one_to_raise_where_the_label_dominates_it() -> None:
    x, y = torch.randn(64, 6), torch.arange(64) % 3
    session = kdkit.Session(net(), train=(x, y), eval=(x, y), teacher=net(5), measures=("quality",))
    faint = session.run("distill soft --epochs 1 --weight 0.0005")
    warning = next(note for note in faint.notes if "dominates" in note)
    assert warning.startswith("label dominates soft")
    assert float(warning.split("--weight ")[1].split()[0]) > 0.005


def test_a_technique_named_by_also_is_reweighted_in_its_own_words(offered: Any) -> None:
    x, y = torch.randn(64, 6), torch.arange(64) % 3
    session = kdkit.Session(net(), train=(x, y), eval=(x, y), teacher=net(5), measures=("quality",))
    made = session.run('distill soft --epochs 1 --no-labels --also "decoupled --weight 9000"')
    warning = next(note for note in made.notes if "dominates" in note)
    assert '--also "decoupled --weight ' in warning or "its weight would balance them" in warning


def test_many_terms_are_shown_in_one_line() -> None:
    found = GradientBalance([TermGradient(f"layer {index}", 1.0, 1.0, 0.1 + index) for index in range(14)])
    assert found.note == "first step: 14 terms, with gradient norms from 0.1 (layer 0) to 13.1 (layer 13)"
    assert repr(found).count("\n") == 15


def test_a_graph_that_allows_no_second_look_is_reported_and_the_training_goes_on() -> None:
    model, run = Checkpointed(*net()), context()
    fit(model, [stage_of(Pair, epochs=1)], run)
    assert notes(run, "could not be computed: gradient checkpointing with use_reentrant=True allows only one backward pass")
    assert not torch.equal(weights(model), weights(net()))


def test_an_infinite_value_still_ends_as_the_loop_says_it() -> None:
    run = context()
    with pytest.raises(kdkit.KdError, match="the loss is not finite: square"):
        fit(net(), [stage_of(lambda: Pair(grow=float("inf")), epochs=1)], run)


def test_a_graph_with_checkpoints_is_looked_at_and_trained_alike() -> None:

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net(dropout=0.3)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=False)

    one, run = Checkpointed(), context()
    fit(one, [stage_of(Pair, epochs=1)], run)
    plain, other = net(dropout=0.3), context()
    fit(plain, [stage_of(Pair, epochs=1)], other)
    assert torch.equal(weights(one), weights(plain))
    assert [pull.gradient for pull in balance_of(run)[0].gradient_norms] == [pytest.approx(pull.gradient, rel=1e-5) for pull in balance_of(other)[0].gradient_norms]


# Exhibits ------------------------------------------------------------------------------------------------------------


def test_every_training_leaves_its_curve_with_validation_beside() -> None:
    x, y = points()
    session = kdkit.Session(net(), train=(x, y), eval=(x, y), validation=points(seed=9), measures=("quality",))
    made = session.run("tune finetune --epochs 3 --validation validation")
    (curve,) = made.attachments
    assert curve.steps == 6
    assert len(curve.terms["label"]) == 6
    assert [step for step, _ in curve.validation["validation_accuracy"]] == [2, 4, 6]
    assert repr(curve) in repr(made)
    assert made._repr_html_().count("<svg") == 2
    assert session.evaluate(made)
    assert session["@1"].attachments == made.attachments


def test_an_attachment_is_shown_below_the_report_and_one_that_fails_hides_nothing(offered: Any) -> None:
    class Sick:
        def __repr__(self) -> str:
            raise ValueError("<sick>")

    class Wordy:
        def __repr__(self) -> str:
            return "<plain words>"

    @kdkit.stage("tune.shown", may_change_nothing=True)
    def shown(model: Any, context: Any) -> None:
        """Show things."""
        context.attach(Sick())
        context.attach(Wordy())

    offered(shown)
    session = kdkit.Session(net(), eval=points(), measures=("quality",))
    made = session.run(shown())
    reported, html = repr(made), made._repr_html_()
    assert reported.index("accuracy") < reported.index("an attachment, Sick, could not be shown: ValueError: <sick>") < reported.index("<plain words>")
    assert "&lt;sick&gt;" in html
    assert "&lt;plain words&gt;" in html


def test_a_version_without_attachments_shows_its_report_only() -> None:
    session = kdkit.Session(net(), eval=points(), measures=("quality",))
    assert session.head.attachments == ()
    assert repr(session.head).endswith(repr(session.head.report))
