"""Channels: how a running stage reports progress and learns that it should stop, in this process or from another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Event
from typing import Protocol


@dataclass(frozen=True)
class Progress:
    """How far a stage is.

    Attributes:
        stage: its title.
        done, total: units of work, such as steps.
        text: what it is doing.
        figures: name -> value, such as the loss.
        part, parts: which of the pipeline's stages it is, counted from 1.
    """

    stage: str
    done: float
    total: float
    text: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    part: int = 1
    parts: int = 1


class Channel(Protocol):
    """The connection between a running stage and the user. An engine that runs stages elsewhere brings its own."""

    def progress(self, progress: Progress) -> None:
        """Report progress to the user."""

    def cancelled(self) -> bool:
        """Whether the user asked the stage to stop."""


@dataclass
class LocalChannel:
    """A callback for progress and an event for cancellation, both in this process.

    >>> channel = LocalChannel(lambda progress: print(progress.done, "of", progress.total))
    >>> channel.progress(Progress("prune mine", 1, 2))
    1 of 2
    >>> channel.cancel()
    >>> channel.cancelled()
    True
    """

    observe: Callable[[Progress], None] = lambda progress: None
    stop: Event = field(default_factory=Event)

    def progress(self, progress: Progress) -> None:
        self.observe(progress)

    def cancelled(self) -> bool:
        return self.stop.is_set()

    def cancel(self) -> None:
        """Ask the stage to stop."""
        self.stop.set()


@dataclass
class RelayChannel:
    """Cancellation as in another channel, and a callback of its own for progress."""

    inner: Channel
    observe: Callable[[Progress], None]

    def progress(self, progress: Progress) -> None:
        self.observe(progress)

    def cancelled(self) -> bool:
        return self.inner.cancelled()

    def cancel(self) -> None:
        """Ask the stage to stop, where the other channel is local."""
        self.inner.cancel()  # type: ignore[attr-defined]


@dataclass(frozen=True)
class SilentChannel:
    """Reports to nobody and never stops: plain data, for a context on its way to another process."""

    def progress(self, progress: Progress) -> None:
        return

    def cancelled(self) -> bool:
        return False
