"""Replace a folder completely or not at all.

The new folder is written next to the old one under a hidden name and synced. On Linux one call swaps the two (renameat2 with RENAME_EXCHANGE);
elsewhere two renames do, and `recover` repairs the folder if the process is killed between them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from kdkit.guards.leftovers import find_temporaries, release_name, remove_abandoned, remove_temporary, temporary_name

AT_FDCWD = -100
RENAME_EXCHANGE = 2


@contextlib.contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """A new empty folder to write to, which replaces `folder` when the block ends without an error.

    On any exception, including an interrupt, `folder` stays as it was. The next call deletes what a killed process left.

    Raises:
        OSError: the folder can't be written.
    """
    recover(folder)
    _sweep(folder)
    fresh = temporary_name(folder)
    try:
        fresh.mkdir()
        yield fresh
        _sync(fresh)
        _swap(fresh, folder)
        _sync_directory(folder.parent)
    finally:
        recover(folder)
        remove_temporary(fresh)  # files that remain are hidden and harmless; the next save deletes them
        release_name(fresh)
    _sweep(folder)


def recover(folder: Path) -> None:
    """Restore a folder that a killed process had renamed but not yet replaced."""
    if not folder.exists():
        for old in find_temporaries(folder, "old"):
            os.rename(old, folder)
            return


def _sweep(folder: Path) -> None:
    """Delete the leftovers of earlier saves of this folder by this process and by processes that no longer run."""
    remove_abandoned(folder, "new")
    remove_abandoned(folder, "old")


def _swap(fresh: Path, folder: Path) -> None:
    """Move `fresh` to the name `folder`."""
    if not folder.exists():
        os.rename(fresh, folder)
    elif not _exchange(fresh, folder):
        old = temporary_name(folder, "old")
        try:
            os.rename(folder, old)
            os.rename(fresh, folder)
        finally:
            release_name(old)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False if the system or its file system can't."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    return rename is not None and rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    _sync_directory(folder)


def _sync_directory(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
