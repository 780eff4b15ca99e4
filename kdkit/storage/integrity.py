"""Checks of a saved folder before its contents are read: no pickles, no missing files, correct checksums."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from kdkit.errors import KdError, did_you_mean
from kdkit.storage.atomic_folder import recover
from kdkit.storage.layout import AGAIN, HEAD, STRUCTURE, WEIGHTS, check_regular, read_json

PICKLES = frozenset({".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib"})


def check_target(folder: Path) -> None:
    """Raise KdError if the folder contains anything that kdkit did not write."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise KdError(f"{folder} is a file", "give the name of a folder")
    present = {path.name for path in folder.iterdir()}
    if not present:
        return
    if HEAD not in present:
        raise KdError(f"{folder} is not empty, and kdkit did not write it", "choose a new folder: kdkit overwrites only what it wrote")
    head = read_json(folder / HEAD)
    files = head.get("files") if isinstance(head, dict) and head.get("format") == "kdkit" else None
    ours = {HEAD, STRUCTURE, WEIGHTS, *(files if isinstance(files, dict) else {})}
    others = sorted(present - {name.partition("/")[0] for name in ours})
    if others:
        raise KdError(f"{folder} also holds {', '.join(others[:5])}, which kdkit did not write", "move these files, or choose a new folder")


def checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 digest of each file in a folder, by relative path."""
    return {path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _digest(path)} for path in sorted(folder.rglob("*")) if path.is_file()}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_source(folder: Path) -> None:
    """Raise KdError if a folder does not exist, can't be read, or contains a pickle."""
    try:
        recover(folder.absolute())
    except OSError as error:
        raise KdError(f"can't read {folder}: {error.strerror or error}", "check its permissions") from error
    if not folder.exists():
        near = [path.name for path in folder.absolute().parent.iterdir()] if folder.absolute().parent.is_dir() else []
        raise KdError(f"there is no folder {folder}", did_you_mean(folder.name, near), "give a folder that %kd save wrote")
    if not folder.is_dir():
        raise KdError(f"{folder} is a file; a saved version is a folder", "give the folder that %kd save wrote")
    for path in sorted(folder.rglob("*")):
        if path.is_file() and _is_pickle(path):
            raise KdError(
                f"{path} is a pickle, which can run code when it is read; kdkit reads no pickles",
                "load it yourself if you trust it, save its tensors with safetensors, and remove it from the folder",
            )


def _is_pickle(path: Path) -> bool:
    if path.suffix.lower() in PICKLES:
        return True
    if path.suffix != ".safetensors":
        return False
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:9] != b"{" and start[:1] in (b"\x80", b"P")


def check_file(folder: Path, name: str, size: int, digest: str) -> None:
    """Raise KdError if a file of a folder is missing or differs from its saved size and checksum."""
    path = folder / name
    check_regular(path)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise KdError(f"{path} is a link to a place outside of its folder", "copy the file to the folder if you trust it")
    found = path.stat().st_size
    if found != size:
        raise KdError(f"{path} is {'cut off' if found < size else 'changed'}: {found:,} bytes of {size:,}", AGAIN)
    if _digest(path) != digest:
        raise KdError(f"{path} was changed since it was saved: its checksum differs", AGAIN)
