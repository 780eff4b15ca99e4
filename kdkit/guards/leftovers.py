"""Temporary names beside a file or folder that is written: they carry the process, so that what a killed process left is known from what is in use."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import threading
from pathlib import Path

_COUNT = itertools.count()
_USERS: dict[Path, threading.Thread] = {}
"""The thread that writes to each temporary name of this process."""


def temporary_name(target: Path, role: str = "new") -> Path:
    """A hidden name in the target's folder, which this thread uses until `release_name`.

    >>> temporary_name(Path("small")).name.startswith(".small.kdkit-new-")
    True
    """
    made = target.parent / f".{target.name}.kdkit-{role}-{os.getpid()}-{next(_COUNT)}"
    _USERS[made] = threading.current_thread()
    return made


def release_name(path: Path) -> None:
    """Say that a temporary name is no longer in use; safe to call twice."""
    _USERS.pop(path, None)


def find_temporaries(target: Path, role: str = "new") -> list[Path]:
    """What has such a name beside a target, whoever uses it, the oldest of a process first."""
    if not target.parent.is_dir():
        return []
    name = re.compile(rf"\.{re.escape(target.name)}\.kdkit-{role}-(\d+)-(\d+)")
    found = {path: match for path in target.parent.iterdir() if (match := name.fullmatch(path.name))}
    return sorted(found, key=lambda path: (int(found[path][1]), int(found[path][2])))


def find_abandoned(target: Path, role: str = "new") -> list[Path]:
    """What a process that no longer runs, or an earlier write of this one, left beside a target."""
    return [path for path in find_temporaries(target, role) if _is_abandoned(path)]


def remove_abandoned(target: Path, role: str = "new") -> None:
    """Delete what `find_abandoned` finds, files and folders; what can't be deleted stays, hidden and harmless."""
    for rest in find_abandoned(target, role):
        remove_temporary(rest)


def remove_temporary(path: Path) -> None:
    """Delete a file or a folder if it exists and can be deleted."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _is_abandoned(path: Path) -> bool:
    process = int(path.name.rsplit("-", 2)[1])
    if process != os.getpid():
        return not is_running(process)
    user = _USERS.get(path)  # an interrupt may have kept this thread from releasing it
    return user is None or user is threading.current_thread() or not user.is_alive()


def is_running(process: int) -> bool:
    """Whether a process with this number runs; True where the system does not tell.

    >>> is_running(os.getpid())
    True
    """
    if os.name != "posix":  # elsewhere os.kill ends the process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
