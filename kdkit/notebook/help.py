"""Help: pages about verbs, families and techniques, written from their declarations."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import Any

from kdkit.contract import FAMILIES, Settings, Stage, describe
from kdkit.errors import KdError, did_you_mean
from kdkit.lines import kind, option, refers
from kdkit.notebook.page import Page, Source
from kdkit.notebook.verbs import Line, Running, Verb, verbs
from kdkit.pipeline import in_words
from kdkit.plugins import manager
from kdkit.table import Table

_GRAMMAR = """%kd VERB ..., or %kd FAMILY TECHNIQUE --option value: one line, one thing done.
%%kd NAME: a pipeline, one stage a line; `together:` opens a group of indented lines that train in one loop.
{expression} or $name hands over an object of the notebook, @label or @number names a version, a ; at the end silences."""


def about(topic: Sequence[str]) -> Page:
    """The page about a topic: () for all, a verb, a family, or a family and a technique.

    Raises:
        KdError: there is no such thing.
    """
    if not topic:
        return overview()
    first, *rest = topic[0].split(".", 1) + list(topic[1:])
    if first in verbs() and not rest:
        return of_verb(verbs()[first])
    if len(rest) == 1:
        return of_stage(manager().stage(f"{first}.{rest[0]}"))
    if first in families() and not rest:
        return Page(techniques(first), f"%kd help {first} TECHNIQUE tells more.")
    known = [*verbs(), *families()]
    raise KdError(
        f"help: there is no {' '.join(topic)!r}", did_you_mean(first, known), f"verbs: {' '.join(verbs())}", f"families: {' '.join(families())}", *manager().blame()
    )


def overview() -> Page:
    """All there is, on one page."""
    told = Table(["verb", "what it does", "example"], [[word, describe(verb), verb.sample] for word, verb in verbs().items()])
    offered = [[family, ", ".join(id.partition(".")[2] for id in manager().stages() if id.startswith(f"{family}."))] for family in families()]
    return Page(
        _GRAMMAR,
        told,
        Table(["family", "techniques"], offered),
        Table(["option of every line", "what it does"], _plain(Line)),
        Table(["option of every stage", "what it does"], _plain(Running)),
    )


def families() -> list[str]:
    """The families that have a technique, in their usual order."""
    found = list(dict.fromkeys(id.partition(".")[0] for id in manager().stages()))
    return sorted(found, key=lambda family: FAMILIES.index(family) if family in FAMILIES else len(FAMILIES))


def techniques(family: str | None = None) -> Table:
    """Techniques with what they do, need, and who brings them.

    Raises:
        KdError: no such family.
    """
    if family is not None and family not in families():
        raise KdError(f"there is no family {family!r}", did_you_mean(family, families()), f"families: {' '.join(families())}", *manager().blame())
    chosen = [(id, stage) for name in families() for id, stage in manager().stages().items() if id.partition(".")[0] == (family or name) == name]
    return Table(
        ["technique", "what it does", "needs", "plugin"],
        [[id.replace(".", " ", 1), describe(stage), ", ".join(stage.needs.names()), manager().provider(id).name] for id, stage in chosen],
    )


def of_verb(verb: type[Verb]) -> Page:
    """The page about a verb."""
    words = [f"[{option(name).lstrip('-').upper()}]" if not verb.model_fields[name].is_required() else option(name).lstrip("-").upper() for name in verb.places]
    options = [*verb.places, *(name for name in verb.model_fields if name not in verb.places)]
    return Page(
        " ".join(["%kd", verb.word(), *words]),
        inspect.getdoc(verb) or "",
        options_of(verb, options) if options else "",
        Source(verb.sample),
    )


def of_stage(stage: type[Stage]) -> Page:
    """The page about a technique."""
    usual = [name for name in stage.model_fields if not is_advanced(stage, name)]
    rare = [name for name in stage.model_fields if name not in usual]
    return Page(
        f"%kd {stage.id.replace('.', ' ', 1)}",
        inspect.getdoc(stage) or "",
        options_of(stage, [*usual, *rare]) if stage.model_fields else "It takes no options of its own.",
        _conditions(stage),
        Table(["option of every stage", "what it does"], _plain(Running)),
        _background(stage),
        Source(sample(stage)),
    )


def options_of(settings: type[Settings], names: Sequence[str]) -> Table:
    """A class's options: name, what they hold, default, bounds, help."""
    return Table(
        ["option", "holds", "default", "bounds", "what it does"],
        [
            [_spelled(settings, name), holds(settings, name), _default(settings, name), bounds(settings, name), settings.model_fields[name].description or ""]
            for name in names
        ],
    )


def sample(stage: type[Stage]) -> str:
    """A line that runs a technique."""
    given = getattr(stage, "sample", "")
    required = [
        f"{option(name)} {'{' + refers(stage, name) + '}' if refers(stage, name) in ('model', 'data', 'function', 'object') else name.upper()}"
        for name, field in stage.model_fields.items()
        if field.is_required()
    ]
    return given or " ".join(["%kd", *stage.id.split(".", 1), *(required or _first(stage)), *stage.sample_options.split()])


def _background(stage: type[Stage]) -> str:
    """What the module of a technique tells below its first paragraph: the paper, the formula at length, pitfalls."""
    if stage.__module__ == "__main__":
        return ""
    return (inspect.getdoc(sys.modules.get(stage.__module__)) or "").partition("\n\n")[2]


def _first(stage: type[Stage]) -> list[str]:
    for name, field in stage.model_fields.items():
        if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
            return [f"{option(name)} {field.default:g}"]
    return []


def _conditions(stage: type[Stage]) -> str:
    lines = [
        f"{what}: {', '.join(words)}."
        for what, words in (
            ("needs", stage.needs.names()),
            ("the model must have", [in_words(trait) for trait in sorted(stage.requires)]),
            ("it must not have", [in_words(trait) for trait in sorted(stage.forbids)]),
            ("afterwards it has", [in_words(trait) for trait in sorted(stage.adds)]),
            ("and has no longer", [in_words(trait) for trait in sorted(stage.removes)]),
        )
        if words
    ]
    return "\n".join(lines)


def _plain(settings: type[Settings]) -> list[list[str]]:
    return [
        [_spelled(settings, name) + ("" if kind(settings, name).base is bool else f" {holds(settings, name)}"), field.description or ""]
        for name, field in settings.model_fields.items()
    ]


def _extra(settings: type[Settings], name: str) -> dict[str, Any]:
    extra = settings.model_fields[name].json_schema_extra
    return extra if isinstance(extra, dict) else {}


def is_advanced(settings: type[Settings], name: str) -> bool:
    """Whether an option is one that is shown after the others."""
    return bool(_extra(settings, name).get("advanced"))


def unit(settings: type[Settings], name: str) -> str:
    """The unit of an option's value; empty where it has none."""
    return str(_extra(settings, name).get("unit", ""))


def _spelled(settings: type[Settings], name: str) -> str:
    return "--NAME {object}" if refers(settings, name) == "others" else option(name)


_NOUNS = {bool: "yes or no", int: "whole number", float: "number", str: "text", object: "object"}
_REFERS = {
    "version": "@version",
    "model": "{model}",
    "data": "{data}",
    "function": "{function}",
    "object": "{object}",
    "others": "{object}",
    "layers": "pattern of module names",
    "path": "path",
}


def holds(settings: type[Settings], name: str) -> str:
    """What an option holds, in words: "whole number, in tokens"."""
    if refers(settings, name) == "others":
        return "{object}"
    this = kind(settings, name)
    noun = " | ".join(map(str, this.choices)) or _REFERS.get(refers(settings, name)) or _NOUNS[this.base]
    return f"{noun}{', several' if this.many else ''}{', in ' + unit(settings, name) if unit(settings, name) else ''}"


def _default(settings: type[Settings], name: str) -> str:
    field = settings.model_fields[name]
    if field.is_required():
        return "must be given"
    value = field.default
    return (
        ""
        if value is None or value == ()
        else ("yes" if value else "no")
        if isinstance(value, bool)
        else " ".join(map(str, value))
        if isinstance(value, tuple)
        else str(value)
    )


_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def bounds(settings: type[Settings], name: str) -> str:
    """An option's bounds: "≥ 0, < 1"; nothing where it has none."""
    return ", ".join(
        f"{sign} {bound:g}" for word, sign in _SIGNS.items() for rule in settings.model_fields[name].metadata if (bound := getattr(rule, word, None)) is not None
    )
