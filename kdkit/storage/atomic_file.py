"""Replace a file completely or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from kdkit.guards.leftovers import release_name, remove_abandoned, remove_temporary, temporary_name


@contextlib.contextmanager
def replace_path(path: Path) -> Iterator[Path]:
    """A name under which to write a file, which replaces `path` when the block ends without an error; a link is followed.

    The name is in a hidden folder of its own beside `path`, since libraries write under further names (safetensors under `.tmpXXXXXX`).

    On any exception, including an interrupt, `path` stays as it was. The next call deletes what a killed process left. Of several
    writers at the same time the last one wins, and each of them writes all of the file.

    Raises:
        OSError: the file can't be written.
    """
    target = Path(os.path.realpath(path))
    remove_abandoned(target)
    folder = temporary_name(target)
    fresh = folder / target.name
    try:
        folder.mkdir()
        yield fresh
        with fresh.open("rb+") as file:
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            shutil.copymode(target, fresh)
        os.replace(fresh, target)
    finally:
        remove_temporary(folder)
        release_name(folder)


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
