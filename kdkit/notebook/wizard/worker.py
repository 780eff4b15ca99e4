"""The worker: runs one task at a time in a thread, so that the kernel stays free and Cancel works."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from kdkit.errors import Cancelled, KdError


class Worker:
    """Runs one task at a time, each in its own thread.

    Attributes:
        busy: the name of the running task, empty if there is none.

    >>> worker, found = Worker(), []
    >>> worker.start("adding", lambda: 1 + 1, lambda value, error: found.append(value))
    >>> worker.wait()
    >>> found
    [2]
    """

    def __init__(self) -> None:
        self.busy = ""
        self._starting = threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(self, what: str, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        """Run `work`, then call `done` with (its result, None) or (None, its error).

        Raises:
            KdError: another task is running.
        """
        with self._starting:
            if self.busy:
                raise KdError(f"another action is running: {self.busy}", "wait for it, or cancel it first")
            self.busy = what
        self._threads = [each for each in self._threads if each.is_alive()]
        self._threads.append(threading.Thread(target=self._do, args=(work, done), name="kdkit-wizard", daemon=True))
        self._threads[-1].start()

    def _do(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        made, error = None, None
        try:
            made = work()
        except BaseException as raised:
            error = raised
        self.busy = ""
        done(made, error)

    def wait(self, seconds: float | None = None) -> None:
        """Wait until all tasks end, or for so many seconds."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(seconds)


def outcome_word(error: BaseException | None) -> str:
    """How a task ended, in a word."""
    return "done" if error is None else "cancelled" if isinstance(error, Cancelled) else "failed"
