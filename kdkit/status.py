"""Status: where a session stands, and what fits next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from kdkit.objects import DATA
from kdkit.pipeline import follows
from kdkit.plugins import manager
from kdkit.versions import Listing

if TYPE_CHECKING:
    from kdkit.session import Session


MANY = 3
"""Techniques of a family up to which a status names each."""


@dataclass(frozen=True)
class Status:
    """A session's versions, its task, data and backend, and the techniques that fit its head."""

    session: Session

    @property
    def listing(self) -> Listing:
        """The versions that are held."""
        history = self.session.history
        return Listing(tuple(version for version in history if version.model is not None), history.head, caption=self.caption)

    @property
    def caption(self) -> str:
        """Task, data and backend in one line."""
        session = self.session
        task = f"task {session.task.name}" if session.task else "no task yet: no data"
        data = ", ".join(name for name in DATA if name in session.objects) or "none"
        return f"{task}; data: {data}; backend {session.settings['backend']}; * is the head"

    @property
    def next(self) -> list[str]:
        """Techniques that could follow the head now, with a bridge where one is known, as "family technique"."""
        traits = self.session.head.traits
        offered = [stage for stage in manager().stages().values() if not stage.bridge]
        return [stage.id.replace(".", " ", 1) for stage in offered if follows(stage, traits)]

    def __repr__(self) -> str:
        return f"{self.listing!r}\n{self._ahead}"

    def _repr_html_(self) -> str:
        return f"{self.listing._repr_html_()}<p>{escape(self._ahead)}</p>"

    @property
    def _ahead(self) -> str:
        fitting, name = ", ".join(_by_family(self.next)), self.session.head.name
        return f"next: {fitting}" if fitting else f"next: nothing fits {name}; save or export it, or branch from another version with --on"


def _by_family(techniques: list[str]) -> Iterator[str]:
    """Each technique; of a family with many, how many there are.

    >>> list(_by_family(["prune channels", "distill a", "distill b", "distill c", "distill d"]))
    ['prune channels', 'distill (4: %kd list distill)']
    """
    families: dict[str, list[str]] = {}
    for each in techniques:
        families.setdefault(each.partition(" ")[0], []).append(each)
    for family, named in families.items():
        yield from named if len(named) <= MANY else [f"{family} ({len(named)}: %kd list {family})"]
