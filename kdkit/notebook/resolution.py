"""The second pass over a `%kd` line: objects in place of the names and expressions that the parser left in its values."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kdkit.errors import KdError, did_you_mean
from kdkit.parameters.command_line import read_entries, read_value
from kdkit.parameters.settings import option
from kdkit.parameters.tokenizer import Reference
from kdkit.parameters.value_types import kind, object_kind

if TYPE_CHECKING:
    from kdkit.notebook.workspace import Workspace
    from kdkit.parameters.settings import Settings

OBJECTS = ("model", "data", "function", "object")
"""What a field can name that is an object of the notebook."""


def resolve(workspace: Workspace, settings: type[Settings], values: Mapping[str, Any], title: str) -> dict[str, Any]:
    """The values of a parsed line with every reference replaced.

    A field of type `Any` takes the object itself. Any other field takes the name under which the session holds the object;
    an object that it doesn't hold yet becomes one of the workspace's `new_objects`.

    Raises:
        KdError: an object is unknown, an expression raises, or a value is not of the field's type.
    """
    return {name: _field(workspace, settings, name, value, title) for name, value in values.items()}


def _field(workspace: Workspace, settings: type[Settings], name: str, value: Any, title: str) -> Any:
    if object_kind(settings, name) == "others":
        return {each: _object(workspace, word, "object") if isinstance(word, str | Reference) else word for each, word in value.items()}
    this, where = kind(settings, name), f"{title}: {option(name)} "
    if this.mapping and isinstance(value, Mapping):
        return dict(_entries(workspace, settings, name, value, where))
    words = value if this.many and isinstance(value, tuple) else (value,)
    found = [read_value(this, resolve_word(workspace, settings, name, word), where) for word in words]
    if not this.many:
        return found[0]
    return tuple(item for each in found for item in (each if isinstance(each, (list, tuple)) else [each]))


def _entries(workspace: Workspace, settings: type[Settings], name: str, value: Mapping[Any, Any], where: str) -> Iterator[tuple[str, Any]]:
    """The items of a mapping; a `Reference` among the keys stands for a dict of items."""
    for key, item in value.items():
        if isinstance(key, Reference):
            found = read_entries(kind(settings, name), workspace.value(key.source), where)
            yield from ((resolve_word(workspace, settings, name, each), one) for each, one in found.items())
        else:
            yield resolve_word(workspace, settings, name, key), item


def resolve_word(workspace: Workspace, settings: type[Settings], name: str, word: Any) -> Any:
    """The value of one word of a field: of a string or a `Reference`. Anything else was converted by the parser already.

    Raises:
        KdError: an object is unknown, or an expression raises.
    """
    if not isinstance(word, str | Reference):
        return word
    what = object_kind(settings, name)
    if what in ("version", "removed"):
        return _version(workspace.value(word.source) if isinstance(word, Reference) else word)
    if what not in OBJECTS:
        return workspace.value(word.source) if isinstance(word, Reference) else word
    if kind(settings, name).base is object:
        return _object(workspace, word, what)
    return _named(workspace, word, name)


def _version(value: Any) -> Any:
    return f"@{value.number}" if hasattr(value, "number") else f"@{value}" if isinstance(value, int) else value


def _object(workspace: Workspace, word: str | Reference, what: str) -> Any:
    """The object that a word stands for; a text in braces that can only be a name, as in net_{i}, is looked up like a word."""
    if isinstance(word, Reference):
        value = workspace.value(word.source)
        if not (isinstance(value, str) and what in ("model", "data")):
            workspace.name_source(value, word.source)
            return value
        word = value
    if word.startswith("@"):
        return workspace.session.history.model_of(workspace.session.version(word))
    if word in workspace.variables and (what != "function" or callable(workspace.variables[word])):
        workspace.name_source(workspace.variables[word], word)
        return workspace.variables[word]
    if workspace.has_session and word in workspace.session.objects:
        return workspace.session.objects[word]
    if what == "function":
        return word
    if not word.isidentifier():
        raise KdError(f"{word!r} is not the name of a variable", f"write the name of your {what}, or an expression in braces: {{{word}}}")
    raise KdError(
        f"there is no variable {word!r}",
        did_you_mean(word, workspace.names()),
        f"write the name of your {what}, or an expression in braces: {{nets['{word}']}}",
    )


def _named(workspace: Workspace, word: str | Reference, option_name: str) -> Any:
    """The name under which the session holds the object that a word stands for."""
    if not isinstance(word, Reference):
        objects = workspace.session.objects if workspace.has_session else None
        is_known = word.startswith("@") or word in ("teacher", "original") or objects is None or objects.get(word) is not None
        if is_known or word not in workspace.variables:
            return word
        word = Reference(word)
    value = workspace.value(word.source)
    if isinstance(value, str):
        return _named(workspace, value, option_name)
    if type(value).__name__ == "Version" and hasattr(value, "number"):
        return f"@{value.number}"
    return _name_for(workspace, value, word.source if word.source.isidentifier() else "", option_name)


def _name_for(workspace: Workspace, value: Any, identifier: str, option_name: str) -> str:
    """The name that the session has for an object, or a free one: the variable's name if possible, else `data_1`, `data_2`, ..."""
    taken = {*(workspace.session.objects if workspace.has_session else ()), *workspace.new_objects}
    known = [name for name, held in (workspace.objects | workspace.new_objects).items() if held is value and name in taken]
    if known:
        return known[0]
    numbered = (f"{identifier or option_name}_{count}" for count in itertools.count(2 if identifier else 1))
    name = next(name for name in itertools.chain([identifier] if identifier else [], numbered) if name not in taken)
    workspace.new_objects[name] = value
    return name
