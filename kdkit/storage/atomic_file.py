"""Replace a file completely or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from kdkit.guards.leftovers import find_abandoned, release_name, temporary_name


@contextlib.contextmanager
def replace_path(path: Path) -> Iterator[Path]:
    """A name under which to write a file, which replaces `path` when the block ends without an error; a link is followed.

    On any exception, including an interrupt, `path` stays as it was. The next call deletes what a killed process left. Of several
    writers at the same time the last one wins, and each of them writes all of the file.

    Raises:
        OSError: the file can't be written.
    """
    target = Path(os.path.realpath(path))
    for rest in find_abandoned(target):
        rest.unlink(missing_ok=True)
    fresh = temporary_name(target)
    try:
        yield fresh
        with fresh.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(fresh, target)
    finally:
        fresh.unlink(missing_ok=True)
        release_name(fresh)


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """As `replace_path`, with the file open.

    >>> import tempfile
    >>> target = Path(tempfile.gettempdir()) / "kdkit-example.txt"
    >>> with replace_file(target) as file: _ = file.write(b"all of it")
    >>> target.read_text()
    'all of it'
    >>> target.unlink()
    """
    with replace_path(path) as fresh, fresh.open("xb") as file:
        yield file
