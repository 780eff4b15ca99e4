"""Removed versions: they can come back until the kernel ends. Their weights wait in files, so that their memory is free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import safetensors.torch
from torch import nn

from kdkit.errors import KdError, did_you_mean
from kdkit.guards.scratch import ScratchFolder
from kdkit.measurement.report import Report
from kdkit.models.copies import share_unchanged
from kdkit.session.history import History, Version
from kdkit.storage.folder import plain_tensors
from kdkit.storage.rebuild import empty_copy, load_tensors
from kdkit.storage.structure import is_plain, tensors

REPLACED = 10
"""How many of the versions that were replaced by a run are kept; those that were dropped all are."""


@dataclass(frozen=True)
class Removed:
    """A version that was removed.

    Attributes:
        lineage: the versions from the first to this one, without their models.
        model: makes its model again.
        was_head: whether it was the head.
        was_replaced: whether a run took its place; otherwise it was dropped.
        next: number of the next version of its session.
    """

    lineage: tuple[Version, ...]
    model: Callable[[], nn.Module]
    was_head: bool
    was_replaced: bool
    next: int

    @property
    def version(self) -> Version:
        return self.lineage[-1]


class RemovedVersions:
    """The removed versions of a session, in the order in which they were removed."""

    def __init__(self) -> None:
        self._folder = ScratchFolder()
        self._removed: dict[int, Removed] = {}

    def __iter__(self) -> Iterator[Removed]:
        return iter(self._removed.values())

    def keep(self, history: History, version: Version, was_replaced: bool = False) -> None:
        """Keep a version that is about to be removed from a history.

        Raises:
            KdError: its weights can't be written.
        """
        if version.model is None:
            return
        lineage = tuple(replace(each, model=None) for each in history.lineage(version))
        removed = Removed(lineage, self._put_away(version.model, version.number), history.head == version.number, was_replaced, history.next)
        self._removed = {number: each for number, each in self._removed.items() if number != version.number} | {version.number: removed}
        for number in [each.version.number for each in self if each.was_replaced][:-REPLACED]:
            self.forget(number)

    def forget(self, number: int) -> None:
        """Free a version for good."""
        del self._removed[number]
        self._file(number).unlink(missing_ok=True)

    def change_reports(self, change: Callable[[Report], Report]) -> None:
        """Change the reports of all removed versions, as when the data that they were measured on are replaced."""
        self._removed = {
            number: replace(removed, lineage=tuple(replace(version, report=change(version.report)) for version in removed.lineage))
            for number, removed in self._removed.items()
        }

    def find(self, name: str | None = None) -> Removed:
        """A removed version by "@label" or "@number"; of several with one label, the last; default: the last of all.

        Raises:
            KdError: there is none.
        """
        word = None if name is None else name.removeprefix("@")
        for removed in reversed([*self]):
            if word in (None, str(removed.version.number), removed.version.label):
                return removed
        known = [f"@{each.version.number}" for each in self]
        listed = ", ".join(f"@{each.version.number} ({each.version.made_by})" for each in self)
        if name is None or not known:
            raise KdError("nothing was removed, so nothing can come back", "%kd drop and a line that runs again remove versions")
        raise KdError(f"no removed version {name}", did_you_mean(name, known), f"removed: {listed}")

    def hints_on(self, name: str) -> list[str]:
        """A hint that a version which is not there was removed; none if it was not."""
        word = name.removeprefix("@")
        return [f"it was removed: %kd restore @{word} brings it back"] if any(word in (str(each.version.number), each.version.label) for each in self) else []

    def restored(self, history: History, removed: Removed) -> History:
        """The history with a removed version, and the lines of the versions that it was made from.

        The head stays, unless the version was the head when it was dropped and no version was made since.
        """
        version, model = removed.version, removed.model()
        parent = history.versions.get(-1 if version.parent is None else version.parent)
        if parent is not None and parent.model is not None:
            share_unchanged(model, parent.model, version.renamed)
        lines = [each for each in removed.lineage[:-1] if each.number not in history.versions]
        found = replace(history.versions.get(version.number, version), model=model)
        is_head = removed.was_head and not removed.was_replaced and history.next == removed.next
        return history.restored([*lines, found], version.number if is_head else None)

    def _put_away(self, model: nn.Module, number: int) -> Callable[[], nn.Module]:
        """Write a model's weights to a file; what has no plain weights stays in memory."""
        if hasattr(model, "kdkit_save") or not all(is_plain(tensor) and not tensor.is_meta for tensor in tensors(model).values()):
            return lambda: model
        file = self._file(number)
        try:
            self._folder.make()
            safetensors.torch.save_file(plain_tensors(model), file)
        except OSError as error:
            raise KdError(f"the weights can't be kept in {file.parent}: {error.strerror or error}", "--forever removes a version without keeping it") from error
        return partial(_load, empty_copy(model), file)

    def _file(self, number: int) -> Path:
        return self._folder.path / f"{number}.safetensors"


def _load(empty: nn.Module, file: Path) -> nn.Module:
    return load_tensors(empty, safetensors.torch.load_file(file))
