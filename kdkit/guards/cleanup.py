"""Cleanup that an interrupt can't skip.

An interrupt can come as a `with` block ends, before the block's cleanup begins. Python would then run the cleanup when the block is
garbage-collected, perhaps in the middle of the next training; so each function that restores torch's modes runs what is left first.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class _Cleanup:
    """What has to run after a block of a thread."""

    thread: threading.Thread
    call: Callable[[], object]

    def run(self) -> None:
        """Run it, unless that has happened."""
        if self in _LEFT:
            try:
                self.call()
            except Exception:
                _forget(self)
                raise
            _forget(self)

    @property
    def is_own(self) -> bool:
        """Whether it is of this thread."""
        return self.thread is threading.current_thread()


_LEFT: list[_Cleanup] = []
"""All cleanups of blocks that run, or that an interrupt cut off."""


@contextlib.contextmanager
def always_run(cleanup: Callable[[], object]) -> Iterator[None]:
    """Call `cleanup` after the block, whether it succeeds or raises; call it a second time if a KeyboardInterrupt cuts it short.

    Args:
        cleanup: must be safe to call twice.

    >>> state = {}
    >>> with always_run(state.clear): state["mode"] = "train"
    >>> state
    {}
    """
    left = _Cleanup(threading.current_thread(), cleanup)
    try:
        _LEFT.append(left)
        yield
    finally:
        try:
            left.run()
        except KeyboardInterrupt:
            left.run()
            raise


def count_cleanups() -> int:
    """The number of cleanups of this thread that have not run."""
    return sum(left.is_own for left in list(_LEFT))


def run_cleanups(keep: int) -> None:
    """Run this thread's cleanups, the newest first, except for the `keep` oldest, and those of threads that have ended; safe to call twice."""
    own = [left for left in list(_LEFT) if left.is_own][keep:]
    for left in reversed([*(left for left in list(_LEFT) if not left.thread.is_alive()), *own]):
        left.run()


def _forget(left: _Cleanup) -> None:
    with contextlib.suppress(ValueError):
        _LEFT.remove(left)
