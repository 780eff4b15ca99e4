"""A folder replaced as a whole or not at all.

The new folder is written beside the old one under a hidden name, synced, and swapped with it in one call where the system can
(renameat2 with RENAME_EXCHANGE, Linux); elsewhere in two renames, between which `recover` knows what to do.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

AT_FDCWD = -100
RENAME_EXCHANGE = 2
_COUNT = itertools.count()


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A new empty folder to write to, which takes the place of `folder` when the block ends well.

    On any exception, an interrupt too, `folder` is what it was before. What a killed process left is cleared away by the next call.

    Raises:
        OSError: the folder can't be written.
    """
    recover(folder)
    _sweep(folder)
    fresh = _beside(folder, "new")
    try:
        fresh.mkdir()
        yield fresh
        _sync(fresh)
        _swap(fresh, folder)
        _sync_directory(folder.parent)
    finally:
        recover(folder)
        shutil.rmtree(fresh, ignore_errors=True)  # a rest is hidden and harmless; the next save sweeps it
    _sweep(folder)


def recover(folder: Path) -> None:
    """Put a folder back that a killed process had renamed and not yet replaced."""
    if not folder.exists():
        for old in _siblings(folder, "old"):
            os.rename(old, folder)
            return


def _beside(folder: Path, role: str) -> Path:
    return folder.parent / f".{folder.name}.kdkit-{role}-{os.getpid()}-{next(_COUNT)}"


def _siblings(folder: Path, role: str) -> list[Path]:
    start = f".{folder.name}.kdkit-{role}-"
    return sorted(path for path in folder.parent.iterdir() if path.name.startswith(start)) if folder.parent.is_dir() else []


def _sweep(folder: Path) -> None:
    """Remove what earlier saves of this folder left: this process's, and those of processes that are gone."""
    for rest in (*_siblings(folder, "new"), *_siblings(folder, "old")):
        process = rest.name.rsplit("-", 2)[1]
        if process == str(os.getpid()) or not _is_alive(int(process)):
            shutil.rmtree(rest, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _swap(fresh: Path, folder: Path) -> None:
    """Afterwards `folder` is what `fresh` was."""
    if not folder.exists():
        os.rename(fresh, folder)
    elif not _exchange(fresh, folder):
        old = _beside(folder, "old")
        os.rename(folder, old)
        os.rename(fresh, folder)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names at once; False where the system or its file system can't."""
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
