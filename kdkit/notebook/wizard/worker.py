"""The worker: one piece of work at a time, in a thread, so that the kernel stays usable and Cancel is heard."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from kdkit.errors import KdError


class Worker:
    """Does one thing at a time in a thread of its own, which ends with it.

    >>> worker, found = Worker(), []
    >>> worker.start("adding", lambda: 1 + 1, lambda value, error: found.append(value))
    >>> worker.wait()
    >>> found
    [2]
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._what = ""
        self._starting = threading.Lock()

    @property
    def busy(self) -> str:
        """What it is doing; empty when nothing."""
        return self._what if self._thread is not None and self._thread.is_alive() else ""

    def start(self, what: str, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        """Do `work` in a thread, and then call `done` with (what it gave, None) or (None, the error it raised).

        Raises:
            KdError: it is busy.
        """
        with self._starting:
            if self.busy and self._thread is not threading.current_thread():
                raise KdError(f"{self.busy} is not done yet", "wait for it, or cancel it first")
            self._what = what
            self._thread = threading.Thread(target=self._do, args=(work, done), name="kdkit-wizard", daemon=True)
            self._thread.start()

    def _do(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        try:
            made, error = work(), None
        except BaseException as raised:
            made, error = None, raised
        done(made, error)

    def wait(self, seconds: float | None = None) -> None:
        """Until it is idle, or so many seconds have gone."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(seconds)
