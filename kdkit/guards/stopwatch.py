"""A stopwatch: how long named parts of a work take, wherever below they happen."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar

_RUNNING: ContextVar[dict[str, float] | None] = ContextVar("kdkit_stopwatch", default=None)


@contextlib.contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """A block whose parts are timed: the seconds of each, by name.

    >>> with stopwatch() as seconds, timed("export"): pass
    >>> [*seconds]
    ['export']
    """
    seconds: dict[str, float] = {}
    token = _RUNNING.set(seconds)
    try:
        yield seconds
    finally:
        _RUNNING.reset(token)


@contextlib.contextmanager
def timed(part: str) -> Iterator[None]:
    """A block, or as a decorator a function, that is a part of what a stopwatch around it times; within itself it counts once."""
    seconds = _RUNNING.get()
    if seconds is None:
        yield
        return
    before, began = seconds.get(part, 0.0), time.perf_counter()
    try:
        yield
    finally:
        seconds[part] = before + time.perf_counter() - began
