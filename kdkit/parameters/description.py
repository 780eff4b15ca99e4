"""A parameter in words: its type, unit, bounds and search range."""

from __future__ import annotations

from typing import Any

from kdkit.parameters.bounds import bounds_of
from kdkit.parameters.search import Search
from kdkit.parameters.settings import Settings
from kdkit.parameters.value_types import kind, object_kind


def _extra(settings: type[Settings], name: str) -> dict[str, Any]:
    extra = settings.model_fields[name].json_schema_extra
    return extra if isinstance(extra, dict) else {}


def is_advanced(settings: type[Settings], name: str) -> bool:
    """Whether an option is shown after the others."""
    return bool(_extra(settings, name).get("advanced"))


def is_main(settings: type[Settings], name: str) -> bool:
    """Whether an option is one of the few that forms show at the front."""
    return bool(_extra(settings, name).get("main"))


def unit(settings: type[Settings], name: str) -> str:
    """The unit of an option's value; empty where it has none."""
    return str(_extra(settings, name).get("unit", ""))


_NOUNS = {bool: "yes or no", int: "whole number", float: "number", str: "text", object: "object"}
_OBJECTS = {
    "version": "@version",
    "removed": "@version",
    "session": "session",
    "model": "{model}",
    "data": "{data}",
    "function": "{function}",
    "object": "{object}",
    "others": "{object}",
    "layers": "pattern of module names",
    "path": "path",
}


def holds(settings: type[Settings], name: str) -> str:
    """What an option holds, in words: "whole number, in tokens".

    >>> from kdkit.parameters.settings import param
    >>> class Mixed(Settings):
    ...     bits: dict[str, int] = param({}, "bits of the weights, by layer", names="layers")
    >>> holds(Mixed, "bits")
    'pattern of module names=whole number, several'
    """
    named, this = object_kind(settings, name), kind(settings, name)
    if named == "others":
        return "{object}"
    noun = " | ".join(map(str, this.choices)) or ("" if this.mapping else _OBJECTS.get(named)) or " | ".join([_NOUNS[this.base], *this.words])
    if this.mapping:
        noun = f"{_OBJECTS.get(named, 'name')}={noun}"
    return f"{noun}{', several' if this.several else ''}{', in ' + unit(settings, name) if unit(settings, name) else ''}"


_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def bounds(settings: type[Settings], name: str) -> str:
    """An option's bounds: "≥ 0, < 1"; empty where it has none."""
    limits = bounds_of(settings, name)
    return ", ".join(f"{sign} {limits[word]:g}" for word, sign in _SIGNS.items() if word in limits)


def search_of(settings: type[Settings], name: str) -> Search | None:
    """What a search may try for an option, for each value of a `dict[str, X]`; None where nothing is declared.

    A tuple of two numbers is a range, unless the type lists its values.

    >>> from kdkit.parameters.settings import param
    >>> class Sample(Settings):
    ...     ratio: float = param(0.5, "share", gt=0, lt=1, search=(0.1, 0.8))
    >>> search_of(Sample, "ratio"), explanation(Sample, "ratio")
    (Search(low=0.1, high=0.8), 'share (search: 0.1 to 0.8)')

    Raises:
        KdError: what is declared is no range and no choices.
    """
    declared = _extra(settings, name).get("search")
    if not declared or isinstance(declared, dict):
        return Search(**declared) if declared else None
    numbers = len(declared) == 2 and all(isinstance(value, int | float) and not isinstance(value, bool) for value in declared)
    return Search(*declared) if numbers and not kind(settings, name).choices else Search(choices=tuple(declared))


def explanation(settings: type[Settings], name: str) -> str:
    """An option's help, with the range of a hyperparameter search where one is declared."""
    search = search_of(settings, name)
    return f"{settings.model_fields[name].description or ''}{f' (search: {search})' if search else ''}"
