"""Comparison with a control: pairs that share start, seed and data; what is reported of them, and what can't be compared."""

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
from kdkit import Progress, Session, compare_with
from kdkit.errors import Cancelled, KdError
from kdkit.session.comparison_report import PairedComparison
from kdkit.training.curve import Curve
from kdkit_distill.response.divergences import soft_labels
from tests.fixtures import lessons, zoo
from tests.fixtures.lessons import points, weights

net = partial(lessons.net, dropout=0.1)
LABELS_ALONE = "tune finetune --epochs 2"


def session(student: nn.Module | None = None, teacher: nn.Module | None = None, **objects: Any) -> Session:
    data: dict[str, Any] = {"train": points(), "eval": points(seed=2), "batch_size": 16, "measures": ("quality",), "seed": 5}
    return Session(net(0) if student is None else student, teacher=net(1) if teacher is None else teacher, **data | objects)


def accuracy(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor] | None = None) -> float:
    x, y = points(seed=2) if data is None else data
    with torch.no_grad():
        return (model.eval()(x).argmax(1) == y).float().mean().item()


# The pairs -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_each_run_is_the_one_that_the_session_would_make_with_that_seed(optimizer: str) -> None:
    lines = f"distill soft --epochs 2 --optimizer {optimizer}", f"{LABELS_ALONE} --optimizer {optimizer}"
    found = compare_with(session(), lines[1], stages=lines[0], seeds=2)
    assert found.seeds == (5, 6)
    for line, runs in zip(lines, (found.compared, found.control), strict=True):
        for seed, run in zip(found.seeds, runs, strict=True):
            assert run.figure == session().run(line, seed=seed)["accuracy"]


@pytest.mark.slow
def test_the_pipeline_of_the_head_is_compared_from_its_parent_with_its_seed() -> None:
    here = session()
    start = here.run("tune finetune --learning-rate 0.01", label="start")
    made = here.run("distill soft --epochs 2", seed=11, label="taught")
    found = compare_with(here, LABELS_ALONE, seeds=2)
    assert (found.lines[0], found.start) == ("distill soft --epochs 2", ("@start", start["accuracy"]))
    assert found.seeds == (11, 12)
    assert found.compared[0].figure == made["accuracy"]


@pytest.mark.slow
def test_a_longer_pipeline_is_compared_from_the_version_that_on_names() -> None:
    here = session()
    here.run("tune finetune --learning-rate 0.01")
    made = here.run("distill soft --epochs 2")
    found = compare_with(here, LABELS_ALONE, on="@base", seeds=1)
    assert found.lines[0].splitlines() == ["tune finetune --learning-rate 0.01", "distill soft --epochs 2"]
    assert found.compared[0].figure == made["accuracy"]


@pytest.mark.slow
def test_bridges_that_the_kit_inserted_belong_to_the_stage_that_they_are_for() -> None:
    here = session(lessons.net(0))
    made = here.run("quantize static")
    assert here.versions[1].inserted
    found = compare_with(here, "tune finetune", version=made, seeds=1)
    assert (found.lines[0], found.start[0]) == ("quantize static", "@base")
    assert found.compared[0].figure == made["accuracy"]


@pytest.mark.slow
def test_a_version_from_the_same_start_can_be_the_control() -> None:
    here = session()
    by_labels = here.run(LABELS_ALONE, label="labels")
    here.run("distill soft --epochs 2", on="@base")
    found = compare_with(here, "@labels", seeds=1, seed=by_labels.seed)
    assert found.lines[1] == "tune finetune --epochs 2"
    assert found.control[0].figure == by_labels["accuracy"]


@pytest.mark.slow
def test_any_pipelines_can_be_compared_without_a_teacher() -> None:
    found = compare_with(session(), ["prune channels --ratio 0.25", "tune finetune"], stages=["prune channels --ratio 0.5", "tune finetune"], seeds=2)
    assert found.reference is None
    assert found.lines[1].splitlines()[0] == "prune channels --ratio 0.25"


@pytest.mark.slow
def test_nothing_is_committed_and_the_session_stays_as_it_was() -> None:
    here = session()
    here.run("distill soft")
    history, objects, settings, before = here.history, dict(here.objects), dict(here.settings), [weights(each.model) for each in here.versions if each.model is not None]
    compare_with(here, "tune finetune", seeds=1, data=points(seed=7))
    assert here.history is history
    assert (dict(here.objects), here.settings) == (objects, settings)
    assert all(torch.equal(one, weights(each.model)) for one, each in zip(before, here.versions, strict=True) if each.model is not None)


@pytest.mark.slow
def test_start_and_reference_are_measured_on_the_eval_data() -> None:
    teacher = net(1).eval()
    found = compare_with(session(teacher=teacher), "tune finetune", stages="distill soft", seeds=1)
    assert found.reference == ("teacher", pytest.approx(accuracy(teacher)))
    assert found.start == ("@base", pytest.approx(accuracy(net(0))))


@pytest.mark.slow
def test_other_data_can_be_given_to_measure_on() -> None:
    other = points(seed=7)
    found = compare_with(session(), "tune finetune", stages="distill soft", seeds=1, data=other)
    assert found.start[1] == pytest.approx(accuracy(net(0), other))


# The same with other options -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_same_is_the_compared_pipeline_with_other_options_in_every_stage_that_has_them() -> None:
    here = session()
    found = compare_with(here, "same --epochs 1 --no-labels", stages=["distill soft --epochs 2", "prune channels --ratio 0.25", "tune finetune --epochs 3"], seeds=1)
    assert found.lines[1].splitlines() == ["distill soft --no-labels", "prune channels --ratio 0.25", "tune finetune"]


@pytest.mark.slow
def test_a_student_of_its_own_is_the_same_in_the_control_and_drawn_again_for_each_seed() -> None:
    x, y = torch.randn(16, 3, 32, 32), torch.randint(0, 3, (16,))
    teacher = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))
    here = Session(teacher, train=(x, y), eval=(x, y), measures=("quality",))
    line = "distill soft --student squeezenet=0.1 --steps 1 --learning-rate 1e-12 --alpha {}"
    starts = {(alpha, seed): weights(_only_parameters(here.run(line.format(alpha), seed=seed, on="@base").model)) for alpha in (0.5, 0.0) for seed in (0, 1)}
    assert torch.allclose(starts[0.5, 0], starts[0.0, 0], atol=1e-6)
    assert not torch.allclose(starts[0.5, 0], starts[0.5, 1], atol=1e-2)
    found = compare_with(here, "same --alpha 0", stages=line.format(0.5), seeds=1)
    assert "--alpha 0" in found.lines[1]


def _only_parameters(model: nn.Module | None) -> nn.Module:
    assert model is not None
    return nn.ParameterList(model.parameters())


@pytest.mark.slow
def test_with_a_student_of_its_own_the_model_at_the_start_is_the_reference() -> None:
    here = Session(net(3), train=points(), eval=points(seed=2), small=net(7, width=4), measures=("quality",))
    start = here.run("tune finetune --epochs 4 --learning-rate 0.05")
    found = compare_with(here, "same --alpha 0", stages="distill soft --student small", seeds=1)
    assert found.reference == ("teacher", start["accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("same", "same alone is no control"),
        ("same --ratio 0.5", "same --ratio: no stage of the compared pipeline has this option"),
        ("same alpha 0", "options are expected"),
        ("same --alpha 2", "--alpha"),
        ("same --alpha 0.9", "the control is the compared pipeline itself"),
        ("tune finetun", "finetun"),
    ],
)
def test_a_control_that_can_not_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(KdError, match=message):
        compare_with(session(), text, stages="distill soft --alpha 0.9")


# The same loop -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_loop_gives_the_control_the_loop_options_that_it_does_not_set() -> None:
    line = "distill soft --epochs 2 --batch-size 8 --optimizer adam"
    found = compare_with(session(), "tune finetune --learning-rate 0.01", stages=line, seeds=1, same_loop=True)
    assert found.lines[1] == "tune finetune --epochs 2 --learning-rate 0.01 --optimizer adam --batch-size 8"


@pytest.mark.slow
def test_a_control_on_other_data_trains_for_as_many_optimizer_steps() -> None:
    here = session(few=points(20, seed=3))
    found = compare_with(here, "tune finetune --data few", stages="distill soft --no-labels --epochs 3", seeds=1, same_loop=True)
    steps = [run.notes[-1].partition(" in ")[2] for run in (found.compared[0], found.control[0])]
    assert steps == ["12 steps", "12 steps"]
    apart = compare_with(here, "tune finetune --data few --epochs 2", stages="distill soft --no-labels --epochs 3", seeds=1, same_loop=True)
    assert apart.control[0].notes[-1].endswith("in 4 steps")


def test_a_pipeline_that_trains_nothing_has_no_loop_to_share() -> None:
    with pytest.raises(KdError, match="the compared pipeline trains nothing"):
        compare_with(session(), "tune finetune", stages="prune channels --ratio 0.25", same_loop=True)


# In a group ----------------------------------------------------------------------------------------------------------

GROUP = "together:\n    distill soft --epochs 2\n    distill hints --weight 5\n    tune finetune"


@pytest.mark.slow
def test_a_group_is_compared_with_another_group_or_with_itself_without_teachers() -> None:
    here = session()
    other = "together:\n    tune finetune --epochs 2\n    distill hints --weight 5"
    found = compare_with(here, other, stages=GROUP, seeds=2)
    for seed, one, two in zip(found.seeds, found.compared, found.control, strict=True):
        assert one.figure == here.run(GROUP, on="@base", seed=seed)["accuracy"]
        assert two.figure == here.run(other, on="@base", seed=seed)["accuracy"]
    alone = compare_with(here, "same --alpha 0", stages=GROUP, seeds=1)
    assert [line.split()[:2] for line in alone.lines[1].splitlines()[1:]] == [line.split()[:2] for line in GROUP.splitlines()[1:]]
    assert alone.lines[1].count("--alpha 0") == 2


@pytest.mark.slow
def test_the_reference_of_a_group_is_the_model_at_the_start_if_any_of_its_stages_brings_a_student() -> None:
    here = Session(net(3), train=points(), eval=points(seed=2), small=net(7, width=4), measures=("quality",))
    start = here.run("tune finetune --epochs 4 --learning-rate 0.05")
    group = "together:\n    distill hints\n    distill soft --student small"
    found = compare_with(here, "same --alpha 0", stages=group, seeds=1)
    assert found.reference == ("teacher", start["accuracy"])


@pytest.mark.slow
def test_nets_that_teach_one_another_have_no_reference() -> None:
    assert compare_with(session(), "tune finetune", stages="distill mutual", seeds=1).reference is None


# What is reported beside the figures ---------------------------------------------------------------------------------


def observed(here: Session, control: str, stages: str, seeds: int = 2) -> tuple[PairedComparison, list[Progress]]:
    seen: list[Progress] = []
    return compare_with(here, control, stages=stages, seeds=seeds, observe=seen.append), seen


@pytest.mark.slow
def test_progress_names_seed_and_side_and_only_ever_grows() -> None:
    _, seen = observed(session(), "tune finetune", "distill soft")
    assert {progress.text.partition(":")[0] for progress in seen} == {f"seed {seed} of 2, {side}" for seed in (1, 2) for side in ("compared", "control")}
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert {(progress.stage, progress.total) for progress in seen} == {("comparison", 4)}
    assert done[-1] == 4


@pytest.mark.slow
def test_the_curves_of_the_runs_are_not_joined_to_one() -> None:
    _, seen = observed(session(held=points(seed=4)), f"{LABELS_ALONE} --validation held", "distill soft --epochs 2 --validation held")
    curve = Curve.of((progress.done, progress.figures) for progress in seen)
    for run, mark in enumerate(["", " (control)", " (seed 2)", " (seed 2, control)"]):
        assert all(run < at <= run + 1 for at, _ in curve.terms[f"loss{mark}"])
        assert len(curve.validation[f"validation_accuracy{mark}"]) == 2
    assert ("soft" in curve.terms, "soft (control)" in curve.terms) == (True, False)


@pytest.mark.slow
def test_the_figures_on_validation_data_are_kept_for_each_epoch() -> None:
    found = compare_with(session(held=points(seed=4)), "same --alpha 0", stages="distill soft --epochs 4 --validation held --keep best", seeds=1)
    assert len(found.compared[0].epochs) == len(found.control[0].epochs) == 4
    assert any("kept epoch" in note for note in found.compared[0].notes)
    assert not any("last epoch;" in remark for remark in found.remarks)


@pytest.mark.slow
def test_with_sgd_the_ratio_of_the_first_steps_is_reported() -> None:
    student, teacher = net(0, dropout=0.0), net(1).eval()
    here = session(copy.deepcopy(student), teacher, train=points(16))
    found = compare_with(here, "tune finetune", stages="distill soft --alpha 1 --temperature 4 --optimizer sgd --learning-rate 0.1", seeds=1, same_loop=True)

    def gradient(loss: str) -> float:
        twin = copy.deepcopy(student).train()
        x, y = points(16)
        output = twin(x)
        (nn.functional.cross_entropy(output, y) if loss == "label" else soft_labels(output, teacher(x), 4.0).mean()).backward()
        return math.sqrt(sum(float(weight.grad.square().sum()) for weight in twin.parameters()))

    ratio = gradient("soft") / gradient("label")
    assert any(f"is {ratio:.2g} times the control's" in line and f"--learning-rate {0.1 * ratio:.2g}" in line for line in found.remarks)


@pytest.mark.slow
def test_with_sgd_the_first_step_of_a_group_is_that_of_all_its_terms() -> None:
    def ratio(group: str) -> float:
        found = compare_with(session(net(0, dropout=0.0)), "tune finetune --optimizer sgd", stages=group, seeds=1)
        (line,) = [line for line in found.remarks if "sgd" in line]
        return float(line.partition("compared pipeline is ")[2].partition(" times")[0])

    group = "together:\n    distill soft --optimizer sgd\n    {}"
    assert ratio(group.format("distill hints --weight 500")) > 10 * ratio(group.format("tune finetune"))


@pytest.mark.slow
def test_with_adamw_no_remark_is_made_of_step_sizes() -> None:
    assert not any("sgd" in line for line in compare_with(session(), "tune finetune", stages="distill soft", seeds=1).remarks)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "differ"), [("", True), ("--alpha 1", False), ("--no-labels", False), ("--data few", False)])
def test_labels_of_different_data_are_remarked(options: str, differ: bool) -> None:
    found = compare_with(session(few=points(8)), "tune finetune --data few", stages=f"distill soft {options}".strip(), seeds=1)
    assert any("from those of train, the control from those of few" in line for line in found.remarks) == differ


@pytest.mark.slow
@pytest.mark.parametrize("patience", ["", " --patience 3"])
def test_patience_is_remarked(patience: str) -> None:
    found = compare_with(session(held=points(seed=4)), "same --alpha 0", stages=f"distill soft --validation held{patience}", seeds=1)
    assert any("--patience" in line for line in found.remarks) == bool(patience)


@pytest.mark.slow
def test_seeds_that_change_nothing_are_remarked() -> None:
    here = session(lessons.net(0), train=points(16))  # one batch, no dropout
    found = compare_with(here, "tune finetune --learning-rate 1", stages="tune finetune", seeds=2)
    assert any("all seeds gave the same figures" in line for line in found.remarks)
    assert not any("same figures" in line for line in compare_with(here, "tune finetune --learning-rate 1", stages="tune finetune", seeds=1).remarks)


@pytest.mark.slow
def test_few_labels_and_a_good_teacher_help_and_the_verdict_says_so() -> None:
    """40 labels against 600 points that the teacher labels."""
    x, y = points(600, seed=8)
    teacher = session(net(1, width=32), train=(x, y), batch_size=32).run("tune finetune --epochs 20 --learning-rate 0.02").model
    here = session(teacher=teacher, many=x, few=(x[:40], y[:40]), eval=points(400, seed=9), batch_size=20)
    stages = "distill unlabelled --data many --epochs 12 --learning-rate 0.01"
    found = compare_with(here, "tune finetune --data few", stages=stages, seeds=4, same_loop=True)
    assert found.verdict == "helps"
    assert statistics.fmean(found.gains) > 0.03
    assert found.gap_share is not None


@pytest.mark.slow
def test_a_language_model_is_compared_by_perplexity_where_less_is_better() -> None:
    model = zoo.tiny_gpt2()
    data = [dict(zoo.batch(model).kwargs)]
    here = Session(model, train=data, eval=data, task="causal-lm", measures=("quality",))
    found = compare_with(here, "same --alpha 0", stages="distill soft --student narrow=0.5 --steps 2", seeds=1)
    assert (found.metric, found.better) == ("perplexity", "lower")
    assert found.gains == [found.control[0].figure - found.compared[0].figure]


# What can't be compared ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("during", ["seed 1 of 2, control", "seed 2 of 2, compared"])
def test_a_cancelled_comparison_leaves_teacher_and_session_as_they_were(during: str) -> None:
    teacher = net(1)
    here = session(teacher=teacher)
    before, history = weights(teacher), here.history

    def cancel(progress: Progress) -> None:
        if progress.text.startswith(during):
            here.cancel()

    with pytest.raises(Cancelled):
        compare_with(here, "tune finetune", stages="distill soft", seeds=2, observe=cancel)
    assert torch.equal(weights(teacher), before)
    assert here.history is history
    here.run("distill soft")


def test_a_cancellation_between_two_runs_stops_the_comparison() -> None:
    here, begun = session(), []

    def cancel_after_a_run(progress: Progress) -> None:
        begun.append(progress.text)

    original = type(here)._trial

    def run_then_cancel(self: Session, *args: Any, **named: Any) -> Any:
        made = original(self, *args, **named)
        here.cancel()
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(here), "_trial", run_then_cancel)
        with pytest.raises(Cancelled):
            compare_with(here, "tune finetune --epochs 0.5", stages="tune finetune", seeds=2, observe=cancel_after_a_run)
    assert not any(text.startswith("seed 1 of 2, control") for text in begun)


@pytest.mark.parametrize("option", ["--checkpoint folder", "--resume"])
def test_a_checkpoint_of_several_trainings_is_refused(option: str) -> None:
    with pytest.raises(KdError, match="compared: distill soft: --checkpoint and --resume are for one training"):
        compare_with(session(), "tune finetune", stages=f"distill soft {option}")


@pytest.mark.parametrize("data", [None, points()[0]])
def test_a_comparison_needs_labels_to_measure_on(data: Any) -> None:
    with pytest.raises(KdError, match="evaluation data with labels"):
        compare_with(session(eval=data), "tune finetune", stages="distill soft")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stages", "control", "message"),
    [
        ("distill soft", "tune finetune --data bare", "control: tune finetune needs labels"),
        ("distill soft --teacher nobody", "tune finetune", "compared: .*nobody"),
        ("distill soft", "tune finetune --data other", "control: .*--data other"),
        ("distill similarity --accumulate 2", "tune finetune", "compared: .*accumulate"),
    ],
)
def test_both_pipelines_are_validated_before_anything_runs(stages: str, control: str, message: str) -> None:
    seen: list[Progress] = []
    with pytest.raises(KdError, match=message):
        compare_with(session(bare=points()[0]), control, stages=stages, observe=seen.append)
    assert not seen


def test_a_version_that_no_stage_made_has_no_pipeline() -> None:
    with pytest.raises(KdError, match="no stage made @base"):
        compare_with(session(), "tune finetune")


@pytest.mark.slow
def test_a_version_is_compared_from_one_of_its_ancestors_only() -> None:
    here = session()
    here.run("tune finetune", label="one")
    here.run("distill soft", on="@base", label="two")
    with pytest.raises(KdError, match="@two was not made from @one"):
        compare_with(here, "tune finetune", on="@one")
    with pytest.raises(KdError, match="no stage made @two since @two"):
        compare_with(here, "tune finetune", on="@two")


@pytest.mark.parametrize("seeds", [0, 2.5, "3", True])
def test_at_least_one_pair_is_needed(seeds: Any) -> None:
    with pytest.raises(KdError, match="at least one pair"):
        compare_with(session(), "tune finetune", stages="distill soft", seeds=seeds)


@pytest.mark.parametrize("seed", ["x", -1, 2**63 - 2])
def test_the_seeds_of_all_pairs_must_be_valid(seed: Any) -> None:
    with pytest.raises(KdError, match="--seed .* is not a whole number"):
        compare_with(session(), "tune finetune", stages="distill soft", seeds=3, seed=seed)


@pytest.mark.parametrize("line", ["distill soft --control few --seeds 3", "distill born-again --seeds 3"])
def test_a_line_of_an_earlier_release_is_refused_with_the_line_to_write_instead(line: str) -> None:
    with pytest.raises(KdError, match='compare-with "tune finetune --data train" --same-loop') as error:
        session().run(line)
    assert sum("compare-with" in hint for hint in error.value.hints) == 2


def test_the_comparison_is_public() -> None:
    assert kdkit.PairedComparison is PairedComparison
