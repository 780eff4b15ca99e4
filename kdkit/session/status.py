"""Status: the versions of a session, its task, data and backend, and the techniques that fit next."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from kdkit.session.history import History, Version
from kdkit.session.listing import Listing
from kdkit.session.next_steps import next_steps

FEW = 5
"""Next steps that a status names."""


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
        chosen, name = _first_of_families(self.next)[:FEW], self.head.name
        return f"next: {', '.join(chosen)}; %kd list shows all" if chosen else f"next: nothing fits {name}; save or export it, or branch from another version with --on"


def _first_of_families(techniques: list[str]) -> list[str]:
    """Of each family the technique of most use.

    >>> _first_of_families(["prune channels", "distill soft", "tune finetune", "distill hints"])
    ['prune channels', 'distill soft', 'tune finetune']
    """
    firsts: dict[str, str] = {}
    for each in techniques:
        firsts.setdefault(each.partition(" ")[0], each)
    return list(firsts.values())
