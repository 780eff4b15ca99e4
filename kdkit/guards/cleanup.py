"""Cleanup that an interrupt can't skip."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


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
    try:
        yield
    finally:
        try:
            cleanup()
        except KeyboardInterrupt:
            cleanup()
            raise
