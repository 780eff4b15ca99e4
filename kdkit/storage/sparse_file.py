"""Sparse files: almost all holes, so that they take little to send and hours to read."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

SMALL = 256 * 2**20
"""Bytes of a file that may consist of holes."""
SPARSEST = 64
"""Bytes of a large file for each byte that its file system stores; those that compress reach some 10 on real weights."""


def describe_sparse(path: Path) -> str:
    """That a large file is almost all holes, which take little to send and much to read, as a clause; empty if it is not."""
    facts = path.stat()
    if facts.st_size <= SMALL or facts.st_size <= SPARSEST * getattr(facts, "st_blocks", facts.st_size) * 512:
        return ""
    # file systems of networks may report no blocks at all; they also report no holes
    stored = _count_stored(path)
    return f"is a sparse file: it has {facts.st_size:,} bytes, and {stored:,} of them are stored" if facts.st_size > SPARSEST * stored else ""


def _count_stored(path: Path) -> int:
    """The bytes of a file that are not in holes; all where the system has no holes."""
    size, stored, end = path.stat().st_size, 0, 0
    if not hasattr(os, "SEEK_DATA"):
        return size
    with path.open("rb") as file, contextlib.suppress(OSError):  # there is no data behind the last
        while end < size and stored * SPARSEST < size:
            start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            stored += end - start
    return stored
