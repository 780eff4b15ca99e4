"""Garbage collection, paused for a block."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

from kdkit.guards.cleanup import always_run


@contextlib.contextmanager
def garbage_kept() -> Iterator[None]:
    """A block in which Python collects no cycles of garbage, as in `timeit`; importing modules is a tenth faster too.

    >>> with garbage_kept(): gc.isenabled()
    False
    """
    if not gc.isenabled():
        yield
        return
    with always_run(gc.enable):
        gc.disable()
        yield
