"""The control: pairs that share all but the teacher, what follows from their figures, and what can't be compared."""

from __future__ import annotations

import copy
import math
import statistics
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import kdkit
from kdkit.context import Context
from kdkit.curve import Curve
from kdkit.data import adopt_data
from kdkit.errors import Cancelled, KdError
from kdkit.pipeline import Pipeline
from kdkit.tasks import CausalLM, Classification
from kdkit.training import fit
from kdkit_distill.comparison import Comparison, Run, gains, gap_recovered, spread, verdict
from kdkit_distill.control import Labels
from kdkit_distill.evaluation import figure
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.response.soft import Soft
from kdkit_distill.scheme.mutual import Mutual
from kdkit_tune.finetune import Finetune
from tests import zoo
from tests.plugins import lessons
from tests.plugins.lessons import points, weights

# The figures ---------------------------------------------------------------------------------------------------------


def test_gains_are_paired_and_positive_where_distilling_was_better() -> None:
    assert gains([0.5, 0.7], [0.6, 0.6], "higher") == pytest.approx([0.1, -0.1])
    assert gains([0.5, 0.7], [0.6, 0.6], "lower") == pytest.approx([-0.1, 0.1])


def test_the_spread_is_the_sample_standard_deviation() -> None:
    values = [0.1, 0.4, 0.2]
    mean = sum(values) / 3
    assert spread(values) == pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in values) / 2))
    assert math.isnan(spread([1.0]))


@pytest.mark.parametrize(
    ("control", "distilled", "teacher", "better", "share"),
    [
        (69.06, 70.66, 72.34, "higher", 0.488),  # resnet 56 to 20, as RepDistiller has it
        (0.5, 0.5, 1.0, "higher", 0.0),
        (0.5, 0.4, 1.0, "higher", -0.2),
        (0.5, 1.1, 1.0, "higher", 1.2),
        (40.0, 30.0, 20.0, "lower", 0.5),
    ],
)
def test_the_gap_recovered_is_a_share_of_what_lies_between_control_and_teacher(control: float, distilled: float, teacher: float, better: str, share: float) -> None:
    assert gap_recovered(control, distilled, teacher, better) == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize(("teacher", "better"), [(0.5, "higher"), (0.4, "higher"), (0.6, "lower")])
def test_there_is_no_gap_where_the_teacher_is_no_better(teacher: float, better: str) -> None:
    assert gap_recovered(0.5, 0.55, teacher, better) is None


@pytest.mark.parametrize(
    ("gained", "said"),
    [
        ([0.03, 0.02, 0.04], "helps"),
        ([-0.03, -0.02, -0.04], "hurts"),
        ([0.03, -0.001, 0.04], "no effect"),  # not all on one side
        ([0.1, 0.001, 0.001], "no effect"),  # on one side, and within one deviation
        ([0.0, 0.0, 0.0], "no effect"),
        ([0.02, 0.02], "helps"),
        ([0.5], "one seed tells little"),
        ([0.5, math.nan], "no verdict"),
    ],
)
def test_the_verdict_wants_all_seeds_on_one_side_and_the_mean_beyond_one_deviation(gained: list[float], said: str) -> None:
    assert verdict(gained) == said


def comparison(**changes: Any) -> Comparison:
    told: dict[str, Any] = {"metric": "accuracy", "better": "higher", "before": (0.1, 0.2), "teacher": 1.0}
    return Comparison(**(told | {"control": (Run(0.5), Run(0.6)), "distilled": (Run(0.75), Run(0.65))} | changes))


def test_the_table_has_a_row_for_each_and_means_with_their_spread() -> None:
    shown = comparison()
    assert [row[0] for row in shown.table.rows] == ["student before", "control, labels alone", "distilled", "teacher"]
    assert "0.55 (± 0.0707)" in repr(shown)
    assert "in 2 of 2 seeds" in repr(shown)
    assert "33 % of the gap" in repr(shown)
    assert "<table" in shown._repr_html_()
    assert shown.verdict == "helps"


def test_where_less_is_better_a_win_is_told_with_its_real_sign() -> None:
    shown = comparison(metric="loss", better="lower", control=(Run(2.0), Run(2.0)), distilled=(Run(1.5), Run(1.25)), teacher=1.0)
    assert shown.verdict == "helps"
    assert "loss -0.625 ±" in shown.lines()[0]
    assert shown.recovered == pytest.approx(0.625)


def test_last_and_best_epoch_are_told_of_validation_data() -> None:
    shown = comparison(control=(Run(0.5, (0.4, 0.6, 0.5)),), distilled=(Run(0.75, (0.7, 0.8)),), before=(0.1,))
    assert shown.table.head[2:] == ["validation, last epoch", "validation, best epoch"]
    assert "0.6 (epoch 2 of 3)" in repr(shown)
    assert "0.8 (epoch 2 of 2)" in repr(shown)
    less = comparison(better="lower", control=(Run(0.5, (0.4, 0.6)),), distilled=(Run(0.7),), before=(0.1,))
    assert "0.4 (epoch 1 of 2)" in repr(less)


@pytest.mark.parametrize("distilled", [0.5, 0.4])
def test_where_nothing_is_recovered_no_share_is_told(distilled: float) -> None:
    shown = comparison(control=(Run(0.5),), distilled=(Run(distilled),), before=(0.1,), teacher=1.0)
    assert "of the gap" not in shown.lines()[0]


def test_one_seed_asks_for_more_and_an_absent_teacher_is_absent() -> None:
    shown = comparison(control=(Run(0.5),), distilled=(Run(0.75),), before=(0.1,), teacher=None)
    assert shown.lines()[0].endswith("--seeds 3 tells more")
    assert shown.recovered is None
    assert "n/a" in repr(shown)


# The pairs -----------------------------------------------------------------------------------------------------------


net = partial(lessons.net, dropout=0.1)


def context(teacher: nn.Module | None = None, **objects: Any) -> Context:
    held = {"train": adopt_data(points(), 16), "eval": adopt_data(points(seed=2), 16), "teacher": teacher, **objects}
    return Context(Classification(), seed=5, objects=held, original=net(50))


def applied(stage: Soft, run: Context, student: nn.Module | None = None) -> tuple[nn.Module, Comparison]:
    made = stage.apply(net(0) if student is None else student, run)
    assert made is not None
    return made, next(thing for thing in run.exhibits if isinstance(thing, Comparison))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_student_that_is_kept_is_the_one_of_a_run_without_control(optimizer: Any) -> None:
    plain = Soft(epochs=2, optimizer=optimizer).apply(net(0), context(net(1)))
    compared, _ = applied(Soft(epochs=2, optimizer=optimizer, control="train", seeds=2), context(net(1)))
    assert plain is not None
    assert torch.equal(weights(plain), weights(compared))


def test_the_control_is_the_same_student_trained_on_labels_with_the_same_seed() -> None:
    run = context(net(1))
    _, found = applied(Soft(epochs=2, control="train", seeds=2), run)
    for seed, told in enumerate(found.control):
        apart = context(net(1))
        apart.seed += seed
        alone = fit(net(0), [Labels(epochs=2)], apart)
        with torch.no_grad():
            assert told.figure == pytest.approx((alone(points(seed=2)[0]).argmax(1) == points(seed=2)[1]).float().mean().item())


def test_figures_before_and_of_the_teacher_are_those_of_the_eval_data() -> None:
    teacher = net(1).eval()
    _, found = applied(Soft(control="train", seeds=2), context(teacher))
    x, y = points(seed=2)

    def accuracy(model: nn.Module) -> float:
        return (model.eval()(x).argmax(1) == y).float().mean().item()

    assert found.teacher == pytest.approx(accuracy(teacher))
    assert list(found.before) == pytest.approx([accuracy(net(0))] * 2)


def test_a_given_student_begins_with_the_same_weights_for_each_seed_and_a_drawn_one_with_its_own() -> None:
    x = torch.randn(16, 3, 32, 32)
    y = torch.randint(0, 3, (16,))
    teacher = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))
    held = {"train": adopt_data((x, y), 8), "eval": adopt_data((x, y), 8)}
    stage = Soft(student="squeezenet=0.1", control="train", seeds=3)
    starts = [stage.beginning(teacher, Context(Classification(), seed=seed, objects=held, original=teacher)) for seed in (0, 0, 1)]
    assert torch.equal(weights(starts[0]), weights(starts[1]))
    assert not torch.equal(weights(starts[0]), weights(starts[2]))
    small = net(7, width=4)
    named = [Soft(student="small").beginning(net(0), Context(Classification(), seed=seed, objects={"small": small})) for seed in (0, 1)]
    assert torch.equal(weights(named[0]), weights(named[1]))


def test_with_a_student_of_ones_own_the_model_at_hand_is_the_teacher_of_the_table() -> None:
    current, small = net(2).eval(), net(7, width=4)
    run = context(small=small)
    made, found = applied(Soft(student="small", control="train"), run, current)
    x, y = points(seed=2)
    assert made[0].out_features == 4
    assert found.teacher == pytest.approx((current(x).argmax(1) == y).float().mean().item())


def test_a_control_on_other_data_has_as_many_optimizer_steps() -> None:
    run = context(net(1), few=adopt_data(points(20, seed=3), 16))
    seen: list[Any] = []
    run.observe = seen.append
    applied(Soft(epochs=3, labels=False, control="few"), run)
    assert any(note.startswith("control:") and note.endswith("in 12 steps") for note in run.notes)
    assert seen[-1].total == 24


def test_progress_tells_seed_and_side_and_only_ever_grows() -> None:
    run = context(net(1))
    seen: list[Any] = []
    run.observe = seen.append
    applied(Soft(control="train", seeds=2), run)
    assert {progress.text.partition(":")[0] for progress in seen} == {f"seed {seed} of 2, {side}" for seed in (1, 2) for side in ("distilled", "control")}
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert {progress.total for progress in seen} == {16}
    assert done[-1] == 16


def test_the_curves_of_a_comparison_are_not_joined_to_one() -> None:
    run = context(net(1), held=adopt_data(points(seed=4), 16))
    seen: list[Any] = []
    run.observe = seen.append
    applied(Soft(epochs=2, control="train", seeds=2, validation="held"), run)
    curve = Curve.of((progress.done, progress.figures) for progress in seen)
    runs = {"": (1, 8), " (control)": (9, 16), " (seed 2)": (17, 24), " (seed 2, control)": (25, 32)}
    for mark, (first, last) in runs.items():
        for name in ("loss", "label"):
            steps = [step for step, _ in curve.terms[name + mark]]
            assert (min(steps), max(steps)) == (first, last)
        assert len(curve.validation[f"validation_accuracy{mark}"]) == 2
    assert ("soft" in curve.terms, "soft (control)" in curve.terms) == (True, False)


def test_epochs_of_validation_data_are_told_and_the_best_is_kept_where_that_is_asked() -> None:
    run = context(net(1), held=adopt_data(points(seed=4), 16))
    _, found = applied(Soft(epochs=4, control="train", validation="held", keep="best"), run)
    assert len(found.distilled[0].epochs) == len(found.control[0].epochs) == 4
    assert any("kept epoch" in note for note in run.notes)


def test_with_sgd_the_ratio_of_the_first_steps_is_told() -> None:
    student, teacher = net(0, dropout=0.0), net(1).eval()
    run = context(teacher)
    run.objects = {**run.objects, "train": adopt_data(points(16), 16)}
    _, found = applied(Soft(alpha=1.0, temperature=4.0, optimizer="sgd", learning_rate=0.1, control="train"), run, copy.deepcopy(student))

    def gradient(loss: str) -> float:
        twin = copy.deepcopy(student).train()
        x, y = points(16)
        said = twin(x)
        (nn.functional.cross_entropy(said, y) if loss == "label" else soft_labels(said, teacher(x), 4.0).mean()).backward()
        return math.sqrt(sum(float(weight.grad.square().sum()) for weight in twin.parameters()))

    ratio = gradient("soft") / gradient("label")
    assert any(f"is {ratio:.2g} times the control's" in line and f"--learning-rate {0.1 * ratio:.2g}" in line for line in found.remarks)


@pytest.mark.parametrize(("options", "told"), [({}, True), ({"alpha": 1.0}, False), ({"labels": False}, False), ({"control": "train"}, False)])
def test_labels_that_the_control_has_not_are_told(options: dict[str, Any], told: bool) -> None:
    run = context(net(1))
    run.objects = {**run.objects, "few": adopt_data(points(8), 8)}
    _, found = applied(Soft(**{"control": "few"} | options), run)
    assert any("the labels of train too, the control those of few alone" in line for line in found.remarks) == told


def test_with_adamw_nothing_is_said_of_step_sizes() -> None:
    _, found = applied(Soft(control="train"), context(net(1)))
    assert not any("sgd" in line for line in found.remarks)


def test_a_cancelled_comparison_leaves_teacher_and_session_as_they_were() -> None:
    teacher, student = net(1), net(7)
    before, first = weights(teacher), weights(student)
    run = context(teacher)
    run.observe = lambda progress: run.cancelled.set() if progress.text.startswith("seed 2") else None
    with pytest.raises(Cancelled):
        Soft(control="train", seeds=2).apply(student, run)
    assert torch.equal(weights(teacher), before)
    assert torch.equal(weights(student), first)


def test_where_labels_tell_nothing_a_teacher_helps_and_the_verdict_says_so() -> None:
    """100 labels against 600 points that the teacher has labelled."""
    x, y = points(600, seed=8)
    teacher = fit(net(1, width=32), [Labels(epochs=20, learning_rate=0.02)], context(train=adopt_data((x, y), 32))).eval()
    run = context(teacher, many=adopt_data(x, 32), few=adopt_data((x[:40], y[:40]), 20), eval=adopt_data(points(400, seed=9), 100))
    _, found = applied(Soft(data="many", labels=False, control="few", seeds=3, epochs=12, learning_rate=0.01), run)
    assert found.verdict == "helps"
    assert statistics.fmean(found.gains) > 0.03
    assert found.recovered is not None


# What can't be compared ----------------------------------------------------------------------------------------------


def problems(stage: Soft, run: Context) -> str:
    return "\n".join(stage.check(net(0), run))


def test_more_seeds_without_a_control_are_refused() -> None:
    assert "--control train" in problems(Soft(seeds=3), context(net(1)))


@pytest.mark.parametrize("option", [{"checkpoint": "folder"}, {"resume": True}])
def test_a_checkpoint_of_several_trainings_is_refused(option: dict[str, Any]) -> None:
    assert "several" in problems(Soft(control="train", **option), context(net(1)))
    assert "several" not in problems(Soft(**option), context(net(1)))


def test_a_control_wants_labels_to_learn_from_and_to_be_measured_on() -> None:
    bare = adopt_data(points()[0], 16)
    assert "bare has none" in problems(Soft(control="bare"), context(net(1), bare=bare))
    assert "eval" in problems(Soft(control="train"), context(net(1), eval=None))
    assert "eval" in problems(Soft(control="train"), context(net(1), eval=bare))
    assert problems(Soft(control="train"), context(net(1))) == ""


def test_a_technique_that_trains_in_a_way_of_its_own_says_that_it_has_no_control() -> None:
    class Own(Soft):
        """Of its own."""

        def apply(self, model: nn.Module, context: Context) -> nn.Module:
            return model

    assert "has no control" in problems(Own(control="train"), context(net(1)))


# In a group ----------------------------------------------------------------------------------------------------------


def grouped(lines: str, run: Context, student: nn.Module | None = None) -> tuple[nn.Module, Comparison]:
    made = Pipeline.from_lines(f"together:\n    {lines}").stages[0].apply(net(0) if student is None else student, run)
    assert made is not None
    return made, next(thing for thing in run.exhibits if isinstance(thing, Comparison))


GROUP = "distill soft --epochs 2 {}\n    distill hints --weight 5\n    tune finetune"


def test_the_control_of_a_group_is_its_loop_without_the_techniques_of_distillation() -> None:
    run = context(net(1))
    _, found = grouped(GROUP.format("--control train --seeds 2"), run)
    for seed, told in enumerate(found.control):
        apart = context(net(1))
        apart.seed += seed
        alone = fit(net(0), [Labels(epochs=2), Finetune()], apart)
        assert told.figure == pytest.approx(figure([alone], apart.data("eval"), apart))
    assert "the control is the same loop without its teachers: labels and tune finetune" in found.remarks


def test_the_student_of_a_group_is_the_one_of_the_group_without_control() -> None:
    made, found = grouped(GROUP.format("--control train"), context(net(1)))
    plain = Pipeline.from_lines(f"together:\n    {GROUP.format('')}").stages[0].apply(net(0), context(net(1)))
    assert plain is not None
    assert torch.equal(weights(made), weights(plain))
    assert found.teacher is not None


def test_the_control_of_a_group_begins_as_the_student_that_another_of_its_stages_brings() -> None:
    small, current = net(7, width=4), net(2).eval()
    run = context(small=small)
    made, found = grouped("distill hints --control train\n    distill soft --student small", run, current)
    assert made[0].out_features == 4
    apart = context()
    assert found.control[0].figure == pytest.approx(figure([fit(net(7, width=4), [Labels()], apart)], apart.data("eval"), apart))
    assert found.teacher == pytest.approx(figure([current], run.data("eval"), run))
    assert list(found.before) == pytest.approx([figure([small], run.data("eval"), run)])


def test_a_control_that_is_not_asked_for_in_the_first_line_of_a_group_is_not_trained_and_that_is_noted() -> None:
    session = kdkit.Session(net(0), train=points(), eval=points(seed=2), teacher=net(1), measures=("quality",))
    for lines in ("tune finetune\n    distill soft --control train", "distill hints\n    distill soft --control train"):
        made = session.run(f"together:\n    {lines}", on="@base")
        assert any("nothing is compared" in note for note in made.notes)
        assert not any(isinstance(thing, Comparison) for thing in made.exhibits)


def test_with_sgd_the_first_step_of_a_group_is_that_of_all_its_terms() -> None:
    alone, both = (
        next(line for line in grouped(lines, context(net(1)), net(0, dropout=0.0))[1].remarks if "sgd" in line)
        for lines in ("distill soft --optimizer sgd --control train\n    tune finetune", "distill soft --optimizer sgd --control train\n    distill hints --weight 500")
    )
    ratios = [float(line.partition("distilled one is ")[2].partition(" times")[0]) for line in (alone, both)]
    assert ratios[1] > 10 * ratios[0]


def test_nets_without_a_teacher_have_none_in_the_table() -> None:
    run = context(net(1))
    Mutual(control="train").apply(net(0), run)
    (found,) = [thing for thing in run.exhibits if isinstance(thing, Comparison)]
    assert found.teacher is None


# In a session --------------------------------------------------------------------------------------------------------


def test_a_session_keeps_the_comparison_with_the_version() -> None:
    session = kdkit.Session(net(0), train=points(), eval=points(seed=2), teacher=net(1), measures=("quality",))
    made = session.run("distill soft --control train --seeds 2")
    assert "distilled against control, 2 seeds" in repr(made)
    assert any(note.startswith(("helps", "hurts", "no effect")) for note in made.notes)
    with pytest.raises(KdError, match="--control other"):
        session.run("distill soft --control other")


def test_a_language_model_is_compared_by_perplexity_where_less_is_better() -> None:
    net = zoo.tiny_gpt2()
    batch = zoo.batch(net)
    data = adopt_data([dict(batch.kwargs)], 8)
    run = Context(CausalLM(), objects={"train": data, "eval": data}, original=net)
    Soft(student="narrow=0.5", control="train", steps=2).apply(zoo.tiny_gpt2(), run)
    (found,) = [thing for thing in run.exhibits if isinstance(thing, Comparison)]
    assert (found.metric, found.better) == ("perplexity", "lower")
    assert found.gains == [found.control[0].figure - found.distilled[0].figure]
