"""Putting things back: what a block changed is as before it, also where an interrupt hits the putting back itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def restored(put_back: Callable[[], object]) -> Iterator[None]:
    """Call `put_back` after the block, whatever happens in it; anew if a KeyboardInterrupt cuts it short.

    Args:
        put_back: sets what it puts back, so that calling it twice does no harm.

    >>> state = {}
    >>> with restored(state.clear): state["mode"] = "train"
    >>> state
    {}
    """
    try:
        yield
    finally:
        try:
            put_back()
        except KeyboardInterrupt:
            put_back()
            raise
