"""Status: the versions of a session, its task, data and backend, and the techniques that fit next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from kdkit.session.history import History, Version
from kdkit.session.listing import Listing
from kdkit.session.next_steps import next_steps

MANY = 3
"""Techniques of a family up to which a status names each."""


@dataclass(frozen=True)
class Status:
    """The state of a session at one moment.

    Attributes:
        history: its versions.
        task: name of its task; empty while there is none.
        data: names of its data sets.
        backend: name of its backend.
    """

    history: History
    task: str = ""
    data: tuple[str, ...] = ()
    backend: str = "cpu"

    @property
    def head(self) -> Version:
        """The version that the next stage works on."""
        return self.history.versions[self.history.head]

    @property
    def listing(self) -> Listing:
        """The versions whose models are in memory."""
        return Listing(tuple(version for version in self.history if version.model is not None), self.history.head, caption=self.caption)

    @property
    def caption(self) -> str:
        """Task, data and backend in one line."""
        task = f"task {self.task}" if self.task else "no task yet: no data"
        return f"{task}; data: {', '.join(self.data) or 'none'}; backend {self.backend}; * is the head"

    @property
    def next(self) -> list[str]:
        """Techniques that can run on the head now, after a bridge if they need one, as "family technique"; those of most use first."""
        return [id.replace(".", " ", 1) for id in next_steps(self.history, self.head)]

    def __repr__(self) -> str:
        return f"{self.listing!r}\n{self._ahead}"

    def _repr_html_(self) -> str:
        return f"{self.listing._repr_html_()}<p>{escape(self._ahead)}</p>"

    @property
    def _ahead(self) -> str:
        fitting, name = ", ".join(_by_family(self.next)), self.head.name
        return f"next: {fitting}" if fitting else f"next: nothing fits {name}; save or export it, or branch from another version with --on"


def _by_family(techniques: list[str]) -> Iterator[str]:
    """Each technique, those of a family together; of a family with many techniques the first, and the number of the others.

    >>> list(_by_family(["prune channels", "distill a", "tune b", "distill b", "distill c", "distill d"]))
    ['prune channels', 'distill a (3 more: %kd list distill)', 'tune b']
    """
    families: dict[str, list[str]] = {}
    for each in techniques:
        families.setdefault(each.partition(" ")[0], []).append(each)
    for family, named in families.items():
        yield from named if len(named) <= MANY else [f"{named[0]} ({len(named) - 1} more: %kd list {family})"]
