"""Scratch folders: for temporary files of one process, made when something is written, and removed when their owner or their process is gone."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import tempfile
import weakref
from pathlib import Path

from kdkit.guards.leftovers import is_running

_HOST = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:20] or "host"
_NAME = re.compile(rf"kdkit-{_HOST}-(\d+)-[0-9a-f]{{16}}")
"""Of the scratch folders of processes on this machine; a container with a name of its own is another machine."""


class ScratchFolder:
    """The name of a folder in the system's temporary folder; `make` makes it, and it is removed when this object or the process ends.

    >>> with ScratchFolder() as folder: folder.is_dir()
    True
    >>> folder.exists()
    False
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.gettempdir()) / f"kdkit-{_HOST}-{os.getpid()}-{secrets.token_hex(8)}"
        self.remove = weakref.finalize(self, _remove, self.path, os.getpid())

    def make(self) -> Path:
        """The folder, made if it does not exist.

        Raises:
            OSError: it can't be made.
        """
        return make_scratch(self.path)

    def __enter__(self) -> Path:
        return self.make()

    def __exit__(self, *error: object) -> None:
        self.remove()


def make_scratch(path: Path) -> Path:
    """Make a scratch folder that only this user can read, and remove those of processes that no longer run.

    Raises:
        OSError: it can't be made.
    """
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_scratch(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
    return path


def sweep_scratch(parent: Path) -> None:
    """Remove this user's scratch folders in a folder whose process no longer runs; links are left alone."""
    for path in parent.iterdir():
        name = _NAME.fullmatch(path.name)
        if name and not path.is_symlink() and path.is_dir() and _is_own(path) and not is_running(int(name[1])):
            shutil.rmtree(path, ignore_errors=True)


def _is_own(path: Path) -> bool:
    return not hasattr(os, "getuid") or path.lstat().st_uid == os.getuid()


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # a forked child leaves its parent's folder alone
        shutil.rmtree(path, ignore_errors=True)
