"""The user's variables in a notebook, and the values that forms suggest for a field."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kdkit.parameters.tokenizer import Reference
from kdkit.parameters.value_types import kind, object_kind

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from kdkit.notebook.workspace import Workspace
    from kdkit.parameters.settings import Settings
    from kdkit.session.session import Session

_PLAIN = (bool, int, float, str, bytes, type, types.ModuleType, types.FunctionType, type(None))


def variables(shell: InteractiveShell) -> dict[str, Any]:
    """The variables that cells of this notebook created, by name, in order of creation."""
    hidden = shell.user_ns_hidden
    return {name: value for name, value in shell.user_ns.items() if not name.startswith("_") and name not in hidden}


def fitting(shell: InteractiveShell, what: str) -> Iterator[str]:
    """Names of the variables that suit a field which names a `what`: "model", "data", "function" or "object"."""
    return (name for name, value in variables(shell).items() if _could_be(value, what))


def sessions_in(shell: InteractiveShell) -> Iterator[tuple[str, Session]]:
    """The variables that hold a session, by name."""
    from kdkit.session.session import Session

    return ((name, value) for name, value in variables(shell).items() if isinstance(value, Session))


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


def suggestions(workspace: Workspace, settings: type[Settings], name: str) -> list[str | Reference]:
    """The values that a form suggests for a field: those of its class, objects of the session, and variables that suit.

    Variables are `Reference`s, as a line passes them in braces.
    """
    what, session, bare = object_kind(settings, name), workspace.open_session, kind(settings, name).base is object
    found: list[str | Reference] = [*settings.suggestions(name)]
    mine = [Reference(each) for each in fitting(workspace.shell, what)]
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
    # a verb that takes the object itself most likely means one of the user's variables
    return [*mine, *found] if bare else [*found, *mine]
