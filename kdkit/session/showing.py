"""Showing: views of a session, which plugins contribute, by their line or by the method that a view replaced."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol

from kdkit.errors import KdError
from kdkit.guards.error_location import describe_error
from kdkit.guards.interrupts import package_of, raise_interrupt
from kdkit.parameters.command_line import read_options
from kdkit.parameters.tokenizer import split
from kdkit.plugins.manager import manager
from kdkit.renaming import warn_renamed
from kdkit.session.viewed import with_copied_models


class Viewing(Protocol):
    """The part of `kdkit.views.View` that showing needs."""

    name: Any

    def of(self, session: Any) -> Any: ...


def read_view(line: str) -> Viewing:
    """The view that a line names, such as "pareto --cost latency".

    Raises:
        KdError: there is no such view, or an option is wrong.
    """
    words = split(line.removeprefix("%kd "))
    if not words or not isinstance(words[0], str):
        raise KdError("which view?", f"views: {', '.join(sorted(record.name for _, record in manager().contributions('kdkit_views')))}")
    view = manager().named("kdkit_views", words[0], "view")
    return view.build(view.name, read_options(view, words[1:], view.name, None, (), view.positional))


def show(view: Viewing, session: Any) -> Any:
    """What a view shows of a session; a plugin's view receives copies of the models.

    Raises:
        KdError: it is no view, the view can't show it, or it failed.
    """
    if isinstance(view, type) or not callable(getattr(view, "of", None)):
        raise KdError(f"{view!r} is not a view", 'pass a line such as "pareto --cost latency", or an instance of a kdkit.View')
    handled, home = sys.exception(), package_of(type(view).__module__)
    shown_of = session if manager().is_own(home) else with_copied_models(session)
    try:
        shown = manager().guarded(f"view {view.name}", lambda: view.of(shown_of), home)
    except KdError:
        raise
    except BaseException as error:  # a view may raise anything, SystemExit too
        raise_interrupt(error, home, handled)
        raise KdError(f"{view.name} failed: {describe_error(error, type(view).__module__)}", "the session is unchanged") from error
    if not hasattr(shown, "_repr_html_"):
        raise KdError(
            f"{view.name} returned a {type(shown).__name__}, which has no _repr_html_", "return a kdkit.display.Table, or an object with __repr__ and _repr_html_"
        )
    return shown


def replaced_method(name: str, show: Callable[..., Any]) -> Callable[..., Any] | None:
    """The deprecated method of `Session` that a view replaced; None if no view replaced one of that name.

    Args:
        show: the session's `show`.
    """
    view = next((record for _, record in manager().contributions("kdkit_views") if getattr(record, "method", "") == name), None)
    if view is None:
        return None

    def method(*args: Any, observe: Callable[..., None] | None = None, **named: Any) -> Any:
        warn_renamed(f"session.{name}(...)", f"session.show({view.name!r})")
        made, objects = view.from_call(*args, **named)
        return show(made, observe=observe, **objects)

    method.__name__, method.__doc__ = name, f"Deprecated: use `session.show({view.name!r})`."
    return method
