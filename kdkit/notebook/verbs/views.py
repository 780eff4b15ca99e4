"""Verbs that show a view of the session: one for each view that the kit and plugins declare."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from kdkit.notebook.verb import Verb, add_source
from kdkit.views.registry import offered_views
from kdkit.views.view import View

if TYPE_CHECKING:
    from kdkit.notebook.workspace import Workspace


class ShowView(Verb, generated=True):
    """Base of the verbs that show a view; the view's options are the verb's."""

    view: ClassVar[type[View]]

    @classmethod
    def word(cls) -> str:
        return cls.view.name

    def run(self, workspace: Workspace) -> Any:
        view = self.view(**{name: getattr(self, name) for name in self.model_fields_set})
        with workspace.temporary_objects(), workspace.progress() as observe:
            return workspace.session.show(view, observe=observe)


@functools.lru_cache
def verb_of(view: type[View]) -> type[Verb]:
    """The verb that shows a view.

    >>> from kdkit.views import Pareto
    >>> verb_of(Pareto).word(), list(verb_of(Pareto).model_fields)
    ('pareto', ['versions', 'quality', 'cost'])
    """
    facts = {"__doc__": view.__doc__, "__module__": view.__module__, "view": view}
    return types.new_class(view.__name__, (view, ShowView), {"generated": True}, lambda namespace: namespace.update(facts))


def view_verbs() -> Iterator[type[Verb]]:
    """The verbs of all views."""
    return map(verb_of, offered_views().values())


add_source(view_verbs)
