"""Running: the stages of a pipeline, one after another, from one version of a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from kdkit.errors import KdError
from kdkit.measurement.report import Report
from kdkit.models import Storage
from kdkit.pipelines.order import Planned
from kdkit.pipelines.pipeline import Pipeline
from kdkit.session.execution import make, raise_problems
from kdkit.session.forecast import Plan, predict_plan
from kdkit.session.history import History, Version
from kdkit.session.objects import Objects
from kdkit.stages.context import Context, Progress
from kdkit.stages.stage import Stage
from kdkit.tasks import Task

Observe = Callable[[Progress], None]


@dataclass(frozen=True)
class Runner:
    """What stages run with: a session's state at one moment.

    Attributes:
        history, objects, task: of the session.
        context: (title, observe, seed) -> the context of a stage.
        measure: (model, check_cancelled, its storage) -> the report.
        trackers: loggers that receive the events of stages.
    """

    history: History
    objects: Objects
    task: Task | None
    context: Callable[[str, Observe | None, int], Context]
    measure: Callable[[nn.Module, Callable[[], None], Storage | None], Report]
    trackers: tuple[Any, ...] = ()

    def steps(self, pipeline: Pipeline, start: Version) -> list[Planned]:
        """The steps of a pipeline, with the bridges that it needs.

        Raises:
            KdError: the pipeline is empty, its order is impossible, or a stage lacks something that it needs.
        """
        if not pipeline.stages:
            raise KdError("there is no stage to run", "write one stage per line, such as prune channels --ratio 0.5")
        steps = pipeline.plan(start.traits, trait_sources(self.history, start))
        for step in steps:
            self.objects.check(step.stage, self.task)
        self._check(steps[0].stage, start)
        return steps

    def validate_order(self, pipeline: Pipeline, start: Version) -> list[list[Planned] | KdError]:
        """For each stage its steps, bridges first, or the error that keeps it from running."""
        found = pipeline.validate_order(start.traits, trait_sources(self.history, start))
        return [steps if isinstance(steps, KdError) else self._validated(steps, None if number else start) for number, steps in enumerate(found)]

    def _validated(self, steps: list[Planned], start: Version | None) -> list[Planned] | KdError:
        try:
            for step in steps:
                self.objects.check(step.stage, self.task)
            if start is not None:
                self._check(steps[0].stage, start)
        except KdError as error:
            return error
        return steps

    def _check(self, stage: Stage, start: Version) -> None:
        raise_problems(stage, self.history.model_of(start), self.context(stage.title, None, 0))

    def predict(self, pipeline: Pipeline, start: Version, observe: Observe | None = None) -> Plan:
        """The steps with the figures predicted after each.

        Raises:
            KdError: as `steps`; or a step that would fail on the structure alone.
        """
        steps = self.steps(pipeline, start)
        model, example = self.history.model_of(start), self.objects.example()
        return predict_plan(steps, model, start.name, lambda stage: self.context(stage.title, observe, 0), example, self.objects)

    def run(self, pipeline: Pipeline, start: Version, seed: int, observe: Observe | None = None) -> Iterator[tuple[list[Version], bool]]:
        """Run a pipeline stage by stage, each on a private copy of the model before it.

        Yields:
            (the versions of one stage, those of its bridges first; whether it was the last stage).

        Raises:
            KdError: as `steps`; or a stage failed.
            Cancelled: the session's `cancel` was called.
        """
        parent, number = start, self.history.next
        groups = list(_by_stage(self.steps(pipeline, start)))
        for part, group in enumerate(groups, 1):
            made: list[Version] = []
            for step in group:
                parent = replace(self._run_step(step, parent, number, seed, _with_part(observe, part, len(groups))), start=start.number)
                made.append(parent)
                number += 1
            yield [*made[:-1], _with_bridges(made)], part == len(groups)

    def _run_step(self, step: Planned, parent: Version, number: int, seed: int, observe: Observe) -> Version:
        context = self.context(step.stage.title, observe, seed)
        return make(step, parent, number, context, lambda model, storage: self.measure(model, context.check_cancelled, storage), self.trackers)


def _with_bridges(made: list[Version]) -> Version:
    """The version of a stage, whose times include those of the bridges that were inserted for it."""
    *bridges, version = made
    return replace(
        version,
        seconds=version.seconds + sum(each.seconds for each in bridges),
        export_seconds=version.export_seconds + sum(each.export_seconds for each in bridges),
        measuring_seconds=version.measuring_seconds + sum(each.measuring_seconds for each in bridges),
    )


def trait_sources(history: History, version: Version) -> dict[str, str]:
    """Which of the stages that led to a version added or removed each trait, for messages."""
    made = [(each, each.stage) for each in history.lineage(version) if each.stage]
    return {trait: f"{stage.title} ({each.name})" for each, stage in made for trait in (*stage.adds, *stage.removes)}


def _by_stage(steps: list[Planned]) -> Iterator[list[Planned]]:
    """Each stage with the bridges that were inserted for it."""
    group: list[Planned] = []
    for step in steps:
        group.append(step)
        if not step.inserted:
            yield group
            group = []


def _with_part(observe: Observe | None, part: int, parts: int) -> Observe:
    """An observer that is also given the number of the stage within its pipeline."""
    return (lambda progress: None) if observe is None else (lambda progress: observe(replace(progress, part=part, parts=parts)))
