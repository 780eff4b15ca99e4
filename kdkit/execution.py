"""Execution: one stage on a private copy, checked and measured, as a version that is not committed yet."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from kdkit.checks import check_result
from kdkit.context import Context, Progress
from kdkit.contract import Stage
from kdkit.errors import Cancelled, KdError
from kdkit.measure import Report
from kdkit.models import private_copy, share_unchanged
from kdkit.pipeline import Planned
from kdkit.places import raised_at
from kdkit.plugins import manager
from kdkit.seeding import seeded
from kdkit.versions import Version


@dataclass(frozen=True)
class Event:
    """What happened to a stage.

    Attributes:
        kind: "started", "progress", "finished", "failed" or "cancelled".
        stage: that it happened to.
        progress: how far it is, while it runs.
        version: what it made, once finished.
        error: why it failed.
    """

    kind: str
    stage: Stage
    progress: Progress | None = None
    version: Version | None = None
    error: BaseException | None = None


def make(step: Planned, parent: Version, number: int, context: Context, measured: Callable[[nn.Module], Report]) -> Version:
    """Run a step on a copy of `parent`'s model and return the version that it makes.

    Args:
        step: the stage, and the traits that it leaves.
        parent: is not changed.
        number: of the new version.
        context: for the stage.
        measured: gives the report of the new model.

    Raises:
        KdError: the stage failed, or what it made is not what it declares.
        Cancelled: it was asked to stop.
    """
    stage = step.stage
    observe, context.observe = context.observe, _telling(stage, context)
    tell(Event("started", stage), context.trackers)
    observe(Progress(context.stage, 0, 1, "begins"))
    began = time.perf_counter()
    try:
        with seeded(context.seed):
            model = _transformed(stage, parent, context)
        seconds = time.perf_counter() - began
        notes, exhibits = tuple(context.notes), tuple(context.exhibits)
        observe(Progress(context.stage, 1, 1, "measuring"))
        report = measured(model)
        version = Version(number, model, report, step.traits, "", stage, parent.number, notes, context.seed, step.inserted, "", seconds, exhibits=exhibits)
    except BaseException as error:
        tell(Event("cancelled" if isinstance(error, Cancelled | KeyboardInterrupt) else "failed", stage, error=error), context.trackers)
        raise
    tell(Event("finished", stage, version=version), context.trackers)
    return version


def _transformed(stage: Stage, parent: Version, context: Context) -> nn.Module:
    before = parent.model
    assert before is not None  # the session hands over versions that it holds
    raise_problems(stage, before, context)
    made = _protocol(stage, private_copy(before), context)
    check_result(stage, source(stage), made, before, parent.traits, context.task, context.objects.example())  # type: ignore[attr-defined]
    made.eval()
    share_unchanged(made, before)
    return made


def _protocol(stage: Stage, model: nn.Module, context: Context) -> nn.Module:
    try:
        return manager().hook.kdkit_run_stage(stage=stage, model=model, context=context)
    except KdError as error:
        error.inside(stage.title)
        raise
    except (Exception, SystemExit) as error:  # the latter would end the kernel, or silently a wizard's thread
        told = manager().each("kdkit_error_hints", _complain, error=error, stage=stage)
        hints = [str(hint) for answer in told for hint in answer or ()]
        raise KdError(f"{stage.title} failed: {_said(error, stage)}", *hints, f"offered by {source(stage)}; the session is as it was") from error


def _said(error: BaseException, stage: Stage) -> str:
    """An error of an author's code, and the line of it that raised."""
    place = raised_at(error, type(stage).__module__)
    return f"{type(error).__name__}: {error}" + (f" ({place}: {place.code})" if place else "")


def raise_problems(stage: Stage, model: nn.Module, context: Context) -> None:
    """Ask a stage's `check`.

    Raises:
        KdError: it found problems, or it failed itself.
    """
    try:
        problems = list(stage.check(model, context))
    except KdError:
        raise
    except (Exception, SystemExit) as error:
        raise KdError(f"{stage.title}: its check raised {_said(error, stage)}", f"offered by {source(stage)}; nothing was run") from error
    if problems:
        raise KdError(f"{stage.title}: {problems[0]}", *problems[1:])


def source(stage: Stage) -> str:
    """Who offers a stage, for messages."""
    return manager().provider(stage.id).source


def tell(event: Event, trackers: Iterable[Any] = ()) -> None:
    """Let plugins and the session's trackers hear of an event; one that raises is reported and does no harm."""
    manager().each("kdkit_event", _complain, event=event)
    for tracker in trackers:
        try:
            tracker.log(event)
        except Exception as error:
            _complain(f"tracker {tracker.name}: log raised {type(error).__name__}: {error}")


def _telling(stage: Stage, context: Context) -> Callable[[Progress], None]:
    observe = context.observe

    def heard(progress: Progress) -> None:
        observe(progress)
        tell(Event("progress", stage, progress), context.trackers)

    return heard


def _complain(message: str) -> None:
    warnings.warn(message, stacklevel=2)
