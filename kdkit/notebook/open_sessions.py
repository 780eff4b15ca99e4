"""The open sessions of a notebook, each under the variable that it was opened with."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kdkit.errors import KdError, did_you_mean

if TYPE_CHECKING:
    from kdkit.session.session import Session


@dataclass(eq=False)
class OpenSession:
    """A session, and what the notebook knows about it.

    Attributes:
        name: the variable or expression that it was opened with.
        session: the session.
        model: gives the object that it was opened with, None once that is gone.
        objects: the objects that lines gave the session, by name.
    """

    name: str
    session: Session
    model: Callable[[], Any] = lambda: None
    objects: dict[str, Any] = field(default_factory=dict)


@dataclass
class OpenSessions:
    """The open sessions, and which of them is current.

    Attributes:
        by_name: every open session.
        current: the one that lines work on, None before the first `%kd use` or `%kd load`.
    """

    by_name: dict[str, OpenSession] = field(default_factory=dict)
    current: OpenSession | None = None

    def __iter__(self) -> Iterator[OpenSession]:
        return iter(self.by_name.values())

    def open(self, session: Session, name: str = "", model: Any = None, objects: dict[str, Any] | None = None) -> OpenSession | None:
        """Add a session and make it the current one.

        A session that had the name is kept as `name~`, in place of one that had that name, if a stage ran in it.

        Args:
            session: the session.
            name: the variable that it was opened with; default: a free name.
            model: the object that it was opened with.
            objects: those that it was given, by name.

        Returns:
            The session that had the name before, if it was kept.
        """
        name = name or next(each for each in (f"session_{count}" for count in itertools.count(1)) if each not in self.by_name)
        former = self.by_name.pop(name, None)
        kept = former is not None and len(former.session.versions) > 1
        if former is not None and kept:
            former.name = f"{name}~"
            self.by_name[former.name] = former
        self.current = self.by_name[name] = OpenSession(name, session, _reference(model), dict(objects or {}))
        return former if kept else None

    def of(self, obj: Any) -> OpenSession | None:
        """The session that an object is, or that was opened with it; of several the last, None if there is none."""
        return next((each for each in reversed([*self]) if obj is not None and (each.session is obj or each.model() is obj)), None)

    def find(self, name: str) -> OpenSession:
        """The session of a name.

        Raises:
            KdError: there is none.
        """
        if name not in self.by_name:
            hint = f"sessions: {' '.join(self.by_name)}" if self.by_name else "%kd use your_model opens one"
            raise KdError(f"there is no session {name!r}", did_you_mean(name, self.by_name), hint)
        return self.by_name[name]

    def close(self, name: str) -> None:
        """Forget a session.

        Raises:
            KdError: there is none of that name, or it is the current one.
        """
        if self.find(name) is self.current:
            raise KdError(f"{name} is the current session", *(f"%kd switch {each}" for each in self.by_name if each != name), "close it after the switch")
        del self.by_name[name]


def _reference(obj: Any) -> Callable[[], Any]:
    """A function that returns an object as long as something else holds it; None for one that can't be referred to like that."""
    return weakref.ref(obj) if hasattr(type(obj), "__weakref__") else lambda: None
