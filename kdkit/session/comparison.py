"""Comparison with a control: two pipelines from one version, on the same data, paired by seed. Nothing is committed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kdkit.errors import KdError
from kdkit.guards.torch_modes import restore_torch_modes
from kdkit.measurement.confidence import SEEDS
from kdkit.pipelines.pipeline import Pipeline
from kdkit.session.comparison_report import PairedComparison, TrialRun
from kdkit.session.control import parent_of, pipeline_since, read_control, trainer, with_loop_of
from kdkit.session.history import Version
from kdkit.session.progress_bar import observed
from kdkit.session.session import Session
from kdkit.session.settings import check_integer
from kdkit.session.state import SessionState
from kdkit.stages.context import Progress
from kdkit.training.stage import TrainStage
from kdkit.training.together import Together

if TYPE_CHECKING:
    from torch import nn

Observe = Callable[[Progress], None]


def compare_with(
    session: Session,
    control: Any,
    *,
    version: Any = None,
    stages: Any = None,
    on: Any = None,
    seeds: int = SEEDS,
    seed: int | None = None,
    data: Any = None,
    same_loop: bool = False,
    observe: Observe | None = None,
) -> PairedComparison:
    """Run two pipelines from one version over several seeds, and compare them on evaluation data. No version is committed.

    Pair i runs both pipelines with the same seed, so they share the initial weights of a fresh student, the order of the
    data, and the random numbers.

    Args:
        session: that has the data; it stays as it is.
        control: stages in any form that `Session.run` takes; a version that was made from the same start; or the word `same` with the options that differ, such as
            `same --alpha 0`, which changes them in every stage that has them.
        version: whose pipeline is compared; default: the head.
        stages: the compared pipeline; default: the stages that made the version.
        on: the version that both start from; default: the parent of `version`, or the head if `stages` are given.
        seeds: number of pairs.
        seed: of the first pair; default: that of the version.
        data: to measure on; default: the session's evaluation data.
        same_loop: train the control with the loop options of the compared pipeline, except those that it sets itself; with
            other data it trains for as many optimizer steps.
        observe: called with progress.

    Raises:
        KdError: a pipeline that can't run, or no labelled data to measure on.
        Cancelled: `session.cancel` was called.

    >>> import torch
    >>> from torch import nn
    >>> x = torch.randn(32, 4)
    >>> session = Session(nn.Linear(4, 2), train=(x, x[:, 0] > 0), eval=(x, x[:, 0] > 0), measures=("quality",))
    >>> found = compare_with(session, "same --epochs 1", stages="tune finetune --epochs 4 --learning-rate 0.1", seeds=2)
    >>> len(found.compared), len(session.versions)
    (2, 1)
    """
    compared, start = subject(session, version, stages, on)
    wanted = _control(session, control, compared, start)
    control_pipeline = with_loop_of(wanted, compared, session) if same_loop else wanted
    with observed(observe, session.settings["verbose"]) as shown:
        return contrast(session, compared, control_pipeline, start, seeds, seed, data, shown)


def subject(session: Session, version: Any = None, stages: Any = None, on: Any = None) -> tuple[Pipeline, Version]:
    """The compared pipeline, and the version that it starts from.

    Raises:
        KdError: no stage made the version, or it was not made from `on`.
    """
    if stages is not None and stages != ():
        return Pipeline.of(stages), session.version(on)
    chosen = session.version(version)
    start = parent_of(session, chosen) if on is None else session.version(on)
    return pipeline_since(session, chosen, start), start


def _control(session: Session, control: Any, compared: Pipeline, start: Version) -> Pipeline:
    if isinstance(control, Version) or (isinstance(control, str) and control.startswith("@")):
        return pipeline_since(session, session.version(control), start)
    return read_control(control, compared) if isinstance(control, str) else Pipeline.of(control)


@restore_torch_modes
def contrast(
    session: Session,
    compared: Pipeline,
    control: Pipeline,
    start: Version,
    seeds: int = SEEDS,
    seed: int | None = None,
    data: Any = None,
    observe: Observe | None = None,
) -> PairedComparison:
    """Run both pipelines once for each seed; arguments as for `compare_with`."""
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise KdError(f"--seeds {seeds!r} is not a whole number from 1 up", "at least one pair is needed")
    sides, trials = {"compared": compared, "control": control}, _Trials(session, start, data)
    for side, pipeline in sides.items():
        trials.validate(side, pipeline)
    if compared.lines() == control.lines():
        raise KdError("the control is the compared pipeline itself", 'name what differs, such as "same --epochs 1"', f"both are: {control.lines()}")
    first = check_integer("seed", next(value for value in (seed, compared.seed, session.settings["seed"]) if value is not None))
    check_integer("seed", first + seeds - 1)
    chosen = tuple(range(first, first + seeds))
    runs: dict[str, list[TrialRun]] = {side: [] for side in sides}
    with trials.session.experiment() as trials.trial:
        start_figure, reference = trials.start_figure(), trials.reference(compared)
        for each in chosen:
            for side, pipeline in sides.items():
                watch = _Watch(observe, sum(map(len, runs.values())), 2 * seeds, side, chosen.index(each), seeds)
                made = trials.run(pipeline, each, watch)
                runs[side].append(TrialRun(trials.figure(made), watch.epochs(trials.metric), made.notes))
        remarks = [*_remarks(compared, control), *_same_figures(runs, seeds), *_step_sizes(trials, compared, control, first)]
    return PairedComparison(
        metric=trials.metric,
        better=trials.better,
        lines=(compared.lines(), control.lines()),
        start=(start.name, start_figure),
        seeds=chosen,
        compared=tuple(runs["compared"]),
        control=tuple(runs["control"]),
        reference=reference,
        remarks=tuple(dict.fromkeys(remarks)),
    )


class _Trials:
    """Runs pipelines on a copy of a session that shares its objects; `trial` is the function of the session's experiment.

    Raises:
        KdError: there are no labelled data to measure on.
    """

    trial: Callable[..., Version]

    def __init__(self, session: Session, start: Version, data: Any):
        self.start, self.session = start, copy.copy(session)
        SessionState.set(self.session, measures=("quality",), **({} if data is None else {"eval": data}))
        task, held = self.session.task, self.session.objects.get("eval")
        if task is None or held is None or (task.needs_labels and not held.labelled):
            raise KdError("a comparison needs evaluation data with labels, and the session has none", "%kd set --eval {held_out_loader}, or --data {held_out_loader}")
        self.task, self.data, self.metric, self.better = task, held, task.metric, task.better

    def validate(self, side: str, pipeline: Pipeline) -> None:
        """Check both pipelines before anything runs.

        Raises:
            KdError: a stage can't run, or it writes or resumes a checkpoint.
        """
        for stage in pipeline.stages:
            for each in stage.stages if isinstance(stage, Together) else (stage,):
                if isinstance(each, TrainStage) and (each.checkpoint or each.resume):
                    raise KdError(f"{side}: {each.title}: --checkpoint and --resume are for one training, and a comparison runs several", "leave them out")
        for found in self.session.validate_order(pipeline, on=self.start):
            if isinstance(found, KdError):
                raise KdError(f"{side}: {found.message}", *found.hints)

    def run(self, pipeline: Pipeline, seed: int, observe: Observe | None = None) -> Version:
        """The version that a pipeline makes from the start; it is not committed."""
        return self.trial(pipeline, on=self.start, seed=seed, observe=observe)

    def figure(self, version: Version) -> float:
        """The task's metric; nan where it could not be measured."""
        found = version.report.get(self.metric)
        return math.nan if found is None else found.value

    def start_figure(self) -> float:
        """The metric of the version that both start from."""
        found = self.session.evaluate(self.start, data=self.data).get(self.metric)
        return math.nan if found is None else found.value

    def reference(self, pipeline: Pipeline) -> tuple[str, float] | None:
        """Name and metric of the reference model of the pipeline's last stage, such as its teacher; None if there is none."""
        stage = pipeline.stages[-1]
        found = stage.reference_model(self.session.history.model_of(self.start), self.session._context(stage.title, None))
        if found is None:
            return None
        name, model = found
        with self.session.backend_for(model).runner(model) as call:
            return name, self.task.evaluate(call, self.data)[self.metric]


class _Watch:
    """Observes one run of several: reports its share of the total progress, and records the figures on validation data.

    Args:
        observe: called with the total progress.
        run: index of the run, of `runs`.
        side: "compared" or "control".
        pair: index of the pair, of `pairs`.
    """

    def __init__(self, observe: Observe | None, run: int, runs: int, side: str, pair: int, pairs: int):
        self.observe, self.number, self.runs = observe, run, runs
        self.name = f"seed {pair + 1} of {pairs}, {side}" if pairs > 1 else side
        self.mark = ", ".join([f"seed {pair + 1}"] * (pair > 0) + [side] * (side == "control"))
        self.seen: list[tuple[int, dict[str, float]]] = []

    def __call__(self, progress: Progress) -> None:
        self.seen += [(progress.part, dict(progress.figures))] if any(name.startswith("validation_") for name in progress.figures) else []
        if self.observe is None:
            return
        share = (progress.part - 1 + progress.done / (progress.total or 1)) / progress.parts
        # figures carry the run's name, so that a live curve does not join those of two runs
        figures = {f"{name} ({self.mark})": value for name, value in progress.figures.items() if name != "learning_rate"} if self.mark else progress.figures
        text = ": ".join(filter(None, [self.name, progress.stage, progress.text]))
        self.observe(Progress("comparison", round(self.number + share, 3), self.runs, text, figures))

    def epochs(self, metric: str) -> tuple[float, ...]:
        """The metric on validation data after each epoch of the last stage that has such data."""
        last = self.seen[-1][0] if self.seen else 0
        return tuple(figures[f"validation_{metric}"] for part, figures in self.seen if part == last and f"validation_{metric}" in figures)


def _remarks(compared: Pipeline, control: Pipeline) -> list[str]:
    """Other differences that may explain a figure, one remark for each."""
    one, other = trainer(compared), trainer(control)
    if one is None or other is None:
        return []
    remarks = []
    if not one.validation or not other.validation:
        remarks.append("figures are of the last epoch; --validation {held_out} shows the best one")
    if one.patience is not None or other.patience is not None:
        remarks.append("--patience may have stopped one of a pair before the other")
    if one.data != other.data and one.required_inputs().labels and other.required_inputs().labels:
        remarks.append(f"the labels differ too: the compared pipeline learns from those of {one.data}, the control from those of {other.data}")
    return remarks


def _same_figures(runs: dict[str, list[TrialRun]], seeds: int) -> list[str]:
    if seeds < 2 or any(len({run.figure for run in side}) > 1 for side in runs.values()):
        return []
    return ["all seeds gave the same figures: where no run draws random numbers, more seeds are no more evidence"]


def _step_sizes(trials: _Trials, compared: Pipeline, control: Pipeline, seed: int) -> list[str]:
    """With SGD a larger loss is a larger step; so the lengths of both first steps are compared."""
    one, other = trainer(compared), trainer(control)
    if one is None or other is None or one.optimizer != "sgd" or other.optimizer != "sgd" or len(compared.stages) > 1 or len(control.stages) > 1:
        return []
    if not all(each.shares_loop for each in (one, other)):
        return []
    ratio = _first_step(trials, compared, seed) / max(_first_step(trials, control, seed), 1e-30)
    return [
        f"with sgd the size of the gradient is part of the step: the first step of the compared pipeline is {ratio:.2g} times the control's at one learning rate. "
        f"A gain may be the learning rate's; try the control with --learning-rate {one.learning_rate * ratio:.2g}, or both with --optimizer adamw"
    ]


def _first_step(trials: _Trials, pipeline: Pipeline, seed: int) -> float:
    """The norm of the gradient at the first step: how far apart the weights are after one step at the learning rates 1 and 2."""
    ends = [list(_model(trials.run(_one_step(pipeline, rate), seed)).parameters()) for rate in (1.0, 2.0)]
    return math.sqrt(sum(float((one.detach().double() - other.detach().double()).square().sum()) for one, other in zip(*ends, strict=True)))


def _model(version: Version) -> nn.Module:
    assert version.model is not None  # it has just been made
    return version.model


def _one_step(pipeline: Pipeline, rate: float) -> Pipeline:
    once = {
        "steps": 1,
        "learning_rate": rate,
        "schedule": "constant",
        "warmup": 0.0,
        "clip": None,
        "weight_decay": 0.0,
        "validation": None,
        "patience": None,
        "keep": "last",
    }
    (stage,) = pipeline.stages
    first, *others = stage.stages if isinstance(stage, Together) else (stage,)
    first = first.model_copy(update=once)
    return replace(pipeline, stages=(Together(stages=(first, *others)) if others else first,))
