"""Execution: run one stage on a private copy, verify and measure the result, and return it as a version that is not committed yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from kdkit.errors import KdError
from kdkit.guards.error_location import describe_error
from kdkit.guards.interrupts import package_of
from kdkit.guards.random_state import seeded
from kdkit.guards.stopwatch import stopwatch
from kdkit.measurement.report import Report
from kdkit.models.copies import private_copy, share_unchanged
from kdkit.models.stored_form import Storage
from kdkit.models.traits import SEEN, traits_of
from kdkit.pipelines.order import Planned
from kdkit.plugins.manager import manager
from kdkit.session.events import warn, with_events
from kdkit.session.history import Version
from kdkit.session.stored_form import storage_after, with_encoded_trait
from kdkit.session.verification import check_result, check_values
from kdkit.stages.channel import Channel, Progress
from kdkit.stages.context import Context
from kdkit.stages.data_sources import CALIBRATION, EXAMPLE, first_data
from kdkit.stages.run import Outcome
from kdkit.stages.stage import Stage
from kdkit.training.blame import stage_of

Result = TypeVar("Result")


def make(step: Planned, parent: Version, number: int, context: Context, measured: Callable[[nn.Module, Storage | None], Report], trackers: Iterable[Any] = ()) -> Version:
    """Run a step on a copy of `parent`'s model and return the new version.

    Args:
        step: the stage, and the traits of its result.
        parent: stays unchanged.
        number: of the new version.
        context: for the stage.
        measured: measures the new model in its stored form.
        trackers: the session's loggers of events.

    Raises:
        KdError: the stage failed, or its result does not match its declaration.
        Cancelled: the user cancelled.
    """
    stage = step.stage

    def run(channel: Channel) -> Version:
        context.channel.progress(Progress(stage.title, 0, 1, "begins"))
        began = time.perf_counter()
        with seeded(context.seed), stopwatch() as parts:
            outcome = _run_verified(stage, parent, replace(context, channel=channel))
        seconds = time.perf_counter() - began
        storage, dropped = storage_after(stage, outcome.model, parent)
        context.channel.progress(Progress(stage.title, 1, 1, "measuring"))
        measuring = time.perf_counter()
        report = measured(outcome.model, storage)
        measuring_seconds = time.perf_counter() - measuring
        return Version(
            number,
            outcome.model,
            report,
            with_encoded_trait((step.traits - SEEN) | traits_of(outcome.model), storage),
            stage=stage,
            parent=parent.number,
            notes=(*outcome.notes, *dropped),
            seed=context.seed,
            inserted=step.inserted,
            seconds=seconds,
            export_seconds=parts.get("export", 0.0),
            measuring_seconds=measuring_seconds,
            attachments=outcome.attachments,
            renamed=outcome.renamed,
            storage=storage,
        )

    return with_events(stage, context.channel, trackers, run)


def _run_verified(stage: Stage, parent: Version, context: Context) -> Outcome:
    before = parent.model
    assert before is not None  # the session starts from versions that still have a model
    raise_problems(stage, before, context)
    outcome = _run_hook(stage, private_copy(before), context)
    data = first_data(context.objects, EXAMPLE)
    example = None if data is None else data.example()
    check_result(stage, source(stage), outcome.model, before, parent.traits, context.task, example)
    if stage.keeps_values:
        check_values(stage, source(stage), outcome.model, before, example, first_data(context.objects, CALIBRATION))
    outcome.model.eval()
    share_unchanged(outcome.model, before, outcome.renamed)
    return outcome


def _run_hook(stage: Stage, model: nn.Module, context: Context) -> Outcome:
    """Run the stage through `kdkit_run_stage`; notes that came back as values precede those of the plugins around it."""
    try:
        result = call_stage(stage, lambda: manager().hook.kdkit_run_stage(stage=stage, model=model, context=context))
    except KdError as error:
        error.inside((stage_of(error) or stage).title).inside(stage.title)
        raise
    except (Exception, SystemExit) as error:  # SystemExit would end the kernel, or silently a thread of the wizard
        culprit = stage_of(error) or stage  # one of a group
        found = manager().each("kdkit_error_hints", warn, error=error, stage=stage)
        hints = [str(hint) for each in found for hint in each or ()]
        failed = f"{stage.title} failed" if culprit is stage else f"{stage.title} failed in {culprit.title}"
        raise KdError(f"{failed}: {describe_error(error, type(culprit).__module__)}", *hints, f"offered by {source(culprit)}; the session is as it was") from error
    here = context.outcome(result)
    if not isinstance(result, Outcome):
        return here
    return Outcome(result.model, (*result.notes, *here.notes), (*result.attachments, *here.attachments), {**result.renamed, **here.renamed})


def raise_problems(stage: Stage, model: nn.Module, context: Context, guarded: bool = True) -> None:
    """Call a stage's `check`.

    Args:
        guarded: whether to put back what the check changes in the process.

    Raises:
        KdError: the check reported problems, or raised an error itself.
    """
    try:
        problems = call_stage(stage, lambda: _lines(stage.check(model, context)), seeded=False) if guarded else _lines(stage.check(model, context))
    except KdError:
        raise
    except (Exception, SystemExit) as error:
        raise KdError(f"{stage.title}: its check failed: {describe_error(error, type(stage).__module__)}", f"offered by {source(stage)}; nothing was run") from error
    if problems:
        raise KdError(f"{stage.title}: {problems[0]}", *problems[1:])


def _lines(problems: Iterable[str]) -> list[str]:
    return [problems] if isinstance(problems, str) else list(problems)


def call_stage(stage: Stage, call: Callable[[], Result], seeded: bool = True) -> Result:
    """Call the code of a stage, and put back what it changes in the process; the user learns of it.

    Args:
        seeded: whether a block around the call restores the random state.
    """
    return manager().guarded(f"{stage.title} (of {source(stage)})", call, package_of(type(stage).__module__), random_state=not seeded)


def source(stage: Stage) -> str:
    """Who offers a stage, for messages: "kdkit 0.2.0 (prune)"."""
    return manager().provider(stage.id).source
