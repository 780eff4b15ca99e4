"""Events: what plugins and trackers are notified of while a stage runs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from torch import nn

from kdkit.errors import Cancelled, describe_exception
from kdkit.guards.interrupts import package_of, raise_interrupt
from kdkit.models.copies import private_copy
from kdkit.plugins.manager import manager
from kdkit.session.history import Version
from kdkit.session.step_log import log_begin, log_end, log_error
from kdkit.stages.channel import Channel, Progress, RelayChannel
from kdkit.stages.stage import Stage


@dataclass(frozen=True)
class Event:
    """Something that happened to a stage.

    Attributes:
        kind: "started", "progress", "finished", "failed" or "cancelled".
        stage: the stage.
        progress: how far it is, for "progress".
        version: the new version, for "finished"; each use of its `model` makes a copy, which may be changed.
        error: the reason, for "failed" and "cancelled".
    """

    kind: str
    stage: Stage
    progress: Progress | None = None
    version: Version | None = None
    error: BaseException | None = None


class ObservedVersion(Version):
    """A version as plugins and trackers receive it: each use of `model` makes a private copy."""

    @classmethod
    def of(cls, version: Version) -> Self:
        """The view of a version."""
        observed = object.__new__(cls)
        vars(observed).update(vars(version))
        return observed

    @property
    def model(self) -> nn.Module | None:
        """A copy of the model; None once the version was dropped."""
        own = vars(self)["model"]
        return None if own is None else private_copy(own)


def with_events(stage: Stage, channel: Channel, trackers: Iterable[Any], run: Callable[[Channel], Version]) -> Version:
    """Run a stage, and notify plugins, trackers and Python's logger `kdkit`: started, progress, then finished, failed or cancelled.

    Args:
        run: runs the stage, which reports its progress to the channel that `run` receives.
    """

    def observe(progress: Progress) -> None:
        channel.progress(progress)
        notify(Event("progress", stage, progress), trackers)

    log_begin(stage)
    notify(Event("started", stage), trackers)
    try:
        version = run(RelayChannel(channel, observe))
    except BaseException as error:
        outcome = "cancelled" if isinstance(error, Cancelled | KeyboardInterrupt) else "failed"
        log_error(stage, outcome, error)
        notify(Event(outcome, stage, error=error), trackers)
        raise
    if isinstance(version, Version):
        log_end(stage, version)
    notify(Event("finished", stage, version=ObservedVersion.of(version) if isinstance(version, Version) else version), trackers)
    return version


def notify(event: Event, trackers: Iterable[Any] = ()) -> None:
    """Send an event to plugins and to the session's trackers; one that raises is reported and skipped."""
    manager().each("kdkit_event", warn, event=event)
    for tracker in trackers:
        handled, home = sys.exception(), package_of(type(tracker).__module__)
        try:
            manager().guarded(f"tracker {tracker.name}", partial(tracker.log, event), home)
        except BaseException as error:  # a tracker may raise anything, SystemExit too
            raise_interrupt(error, home, handled)
            warn(f"tracker {tracker.name}: log raised {describe_exception(error)}")


def warn(message: str) -> None:
    """Report a plugin's or tracker's failure to the user."""
    warnings.warn(message, stacklevel=2)
