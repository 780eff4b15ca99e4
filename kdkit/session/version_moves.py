"""Version moves: undo and redo, labels, and versions that are dropped and come back."""

from __future__ import annotations

from typing import Any

from kdkit.guards.torch_modes import restore_torch_modes
from kdkit.session.history import Version, checked
from kdkit.session.listing import Listing
from kdkit.session.state import SessionState


@restore_torch_modes
class VersionMoves(SessionState):
    """The part of a session that moves among its versions."""

    def undo(self) -> Version:
        """Move the head to the version that it was made from. Right after `drop`, bring back what was dropped instead."""
        if self._after_drop is not None and self._after_drop[0] is self.history:
            self.restore(self._after_drop[1])
            return self.head
        self.history = self.history.undo()
        return self.head

    def redo(self) -> Version:
        """Move the head back to where `undo` left it."""
        self.history = self.history.redo()
        return self.head

    def keep(self, version: Any, label: str) -> Version:
        """Give a version a label; another version that had it loses it."""
        chosen = self.version(version)
        self.history = self.history.labelled(chosen, checked(label))
        return self.version(chosen.number)

    def drop(self, version: Any, forever: bool = False) -> Listing:
        """Free a version's memory; its line remains while other versions were made from it.

        Args:
            version: the version.
            forever: whether it can't come back. Otherwise its weights are kept in a file until the process ends, for `restore` and `undo`.
        """
        with self._busy():
            chosen = self.version(version)
            after = self.history.without(chosen)
            if not forever:
                self._removed.keep(self.history, chosen)
            self.history = after
            self._after_drop = None if forever else (self.history, chosen.number)
        return self.status().listing

    @property
    def removed(self) -> tuple[Version, ...]:
        """The versions that `restore` can bring back, without their models."""
        return tuple(each.version for each in self._removed)

    def restore(self, version: Any = None) -> Version:
        """Bring back a version that was dropped, or that a run replaced.

        The head stays, unless the version was the head when it was dropped and no version was made since.

        Args:
            version: "@label" or "@number" that it had; default: the last one removed.

        Raises:
            KdError: no such version was removed.

        >>> import torch
        >>> from kdkit import Session
        >>> session = Session(torch.nn.Linear(8, 4), example=torch.zeros(1, 8), measures=("parameters",))
        >>> _ = session.run("decompose svd --ratio 0.5", label="thin"), session.drop("@thin")
        >>> session.restore("@thin").name
        '@thin'
        """
        with self._busy():
            removed = self._removed.find(None if version is None else f"@{version.number}" if isinstance(version, Version) else str(version))
            self.history = self._removed.restored(self.history, removed)
            self._removed.forget(removed.version.number)
        return self.version(removed.version.number)
