"""A lock on a folder, for writers in several threads and processes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Let only one writer at a time into the block; the lock ends with the block or with the process.

    On a file system without locks, and where the system has none, all writers enter.

    Raises:
        OSError: the folder can't be opened.

    >>> with lock_folder(Path(".")): "alone"
    'alone'
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
