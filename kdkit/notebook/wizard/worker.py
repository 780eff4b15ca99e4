"""The worker: one piece of work at a time, in a thread, so that the kernel stays usable and Cancel is heard."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from kdkit.errors import Cancelled, KdError


class Worker:
    """Does one thing at a time, each in a thread that ends with it.

    Attributes:
        busy: what it is doing; empty while nothing.

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
        """Do `work`, and when it is over call `done` with (what it gave, None) or (None, the error it raised).

        Raises:
            KdError: it is busy.
        """
        with self._starting:
            if self.busy:
                raise KdError(f"{self.busy} is not done yet", "wait for it, or cancel it first")
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
        """Until all is over, or so many seconds have gone."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(seconds)


def ended(error: BaseException | None) -> str:
    """How a piece of work ended, in a word."""
    return "done" if error is None else "cancelled" if isinstance(error, Cancelled) else "failed"
