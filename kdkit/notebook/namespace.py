"""The namespace: which of a notebook's variables are the user's own, and what a field that names something may mean."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from kdkit.contract import Settings
    from kdkit.lines import Reference
    from kdkit.notebook.desk import Desk

_PLAIN = (bool, int, float, str, bytes, type, types.ModuleType, types.FunctionType, type(None))


def variables(shell: InteractiveShell) -> dict[str, Any]:
    """The variables that cells of this notebook made, by name, in the order in which they did."""
    hidden = shell.user_ns_hidden
    return {name: value for name, value in shell.user_ns.items() if not name.startswith("_") and name not in hidden}


def fitting(shell: InteractiveShell, what: str) -> Iterator[str]:
    """Names of the variables that a field which refers to `what` ("model", "data", "function", "object") may well mean."""
    return (name for name, value in variables(shell).items() if _could_be(value, what))


def _could_be(value: Any, what: str) -> bool:
    from torch import nn

    from kdkit.data import holds_data

    match what:
        case "model":
            return isinstance(value, nn.Module)
        case "data":
            return holds_data(value)
        case "function":
            return callable(value) and not isinstance(value, type | nn.Module)
        case "object":
            return not isinstance(value, (*_PLAIN, nn.Module))
    return False


def offers(desk: Desk, settings: type[Settings], name: str) -> list[str | Reference]:
    """What a form offers for a field: what the class itself does, what the session holds, and the variables that fit.

    A variable stands as a `Reference`, since a line hands it over in braces.
    """
    from kdkit.lines import Reference, kind, refers

    what, session, bare = refers(settings, name), desk.held, kind(settings, name).base is object
    found: list[str | Reference] = [*settings.offers(name)]
    mine = [Reference(each) for each in fitting(desk.shell, what)]
    if session is None:
        return found + mine
    if what in ("version", "model"):
        found += [version.name for version in reversed(session.versions) if version.model is not None]
    if what == "figure":
        found += session.compare().figures
    if what == "layers":
        model = session.history.model_of(session.head)
        found += [name for name, module in model.named_modules() if name and module._parameters]
    if not bare:
        found += [each for each in session.objects if _could_be(session.objects[each], what)]
    # where a verb takes the object itself it is the user's own that is meant
    return [*mine, *found] if bare else [*found, *mine]
