"""Help: pages about verbs, families and techniques, generated from their declarations."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence

from kdkit.display.page import Page, Source
from kdkit.display.table import Table
from kdkit.errors import KdError, did_you_mean
from kdkit.models.traits import in_words
from kdkit.notebook.verb import Verb, verbs
from kdkit.parameters.description import bounds, explanation, holds, is_advanced
from kdkit.parameters.settings import Settings, describe, option
from kdkit.parameters.value_text import write_value
from kdkit.parameters.value_types import kind, object_kind
from kdkit.plugins.manager import manager
from kdkit.stages.example_line import sample
from kdkit.stages.line_options import Line, Running
from kdkit.stages.stage import FAMILIES, Stage

_GRAMMAR = """%kd VERB ..., or %kd FAMILY TECHNIQUE --option value: one line, one action.
%%kd NAME: a pipeline, one stage a line; `together:` starts a group of indented lines that train in one loop.
{expression} or $name passes an object of the notebook, or its text within a word (out_{i}); quotes keep braces as they are.
@label or @number names a version, and ; at the end suppresses the output.
--help, -h or ? behind a line explains it instead of running it.
Numbers may be written as 0.5, 50%, 1e-3, 2k or 10m, and a share of a model's size as 4x, which is 4 times smaller."""


def about(topic: Sequence[str]) -> Page:
    """The page about a topic: () for an overview, a verb, a family, or a family and a technique.

    Raises:
        KdError: there is no such topic.
    """
    if not topic:
        return overview()
    first, *rest = topic[0].split(".", 1) + list(topic[1:])
    if first in verbs() and not rest:
        return of_verb(verbs()[first])
    if len(rest) == 1 and not manager().known_as(rest[0]):
        return of_stage(manager().stage(f"{first}.{rest[0]}"))
    if first in families() and not rest:
        return Page(techniques(first), f"%kd help {first} TECHNIQUE explains one technique.")
    name, meant = next(((name, ids) for name in (" ".join(topic), " ".join(topic[1:])) if name and (ids := manager().known_as(name))), ("", []))
    if meant:
        explained = of_stage(manager().stage(meant[0])) if len(meant) == 1 else techniques(name)
        return Page(f"{name} is {' or '.join(id.replace('.', ' ', 1) for id in meant)}.", explained)
    known = [*verbs(), *families()]
    raise KdError(
        f"help: there is no {' '.join(topic)!r}",
        did_you_mean(first, known),
        f"verbs: {' '.join(verbs())}",
        f"families: {' '.join(families())}",
        *manager().unavailable_hints(),
    )


def overview() -> Page:
    """All verbs and families on one page."""
    listing = Table(["verb", "what it does", "example"], [[word, describe(verb), verb.example_line] for word, verb in verbs().items()])
    brought = [[family, ", ".join(id.partition(".")[2] for id in manager().stages() if id.startswith(f"{family}."))] for family in families()]
    return Page(
        _GRAMMAR,
        listing,
        Table(["family", "techniques"], brought),
        Table(["option of every line", "what it does"], _plain(Line)),
        Table(["option of every stage", "what it does"], _plain(Running)),
    )


def families() -> list[str]:
    """The families that have at least one technique, in the usual order of use."""
    found = list(dict.fromkeys(id.partition(".")[0] for id in manager().stages()))
    return sorted(found, key=lambda family: FAMILIES.index(family) if family in FAMILIES else len(FAMILIES))


def techniques(family: str | None = None) -> Table:
    """A table of techniques: what they do, their other names, what they need, and the plugin that provides them.

    Args:
        family: only those of this family, or those that have this other name.

    Raises:
        KdError: no such family.
    """
    named = manager().known_as(family) if family is not None and family not in families() else []
    if family is not None and family not in families() and not named:
        raise KdError(f"there is no family {family!r}", did_you_mean(family, families()), f"families: {' '.join(families())}", *manager().unavailable_hints())
    ordered = [(id, stage) for name in families() for id, stage in manager().stages().items() if id.partition(".")[0] == name]
    chosen = [(id, stage) for id, stage in ordered if id in named or (not named and family in (None, id.partition(".")[0]))]
    return Table(
        ["technique", "what it does", "also known as", "needs", "plugin"],
        [[id.replace(".", " ", 1), describe(stage), ", ".join(stage.other_names()), ", ".join(stage.needs.names()), manager().provider(id).name] for id, stage in chosen],
    )


def of_verb(verb: type[Verb]) -> Page:
    """The page about a verb."""
    words = [f"[{option(name).lstrip('-').upper()}]" if not verb.model_fields[name].is_required() else option(name).lstrip("-").upper() for name in verb.positional]
    options = [*verb.positional, *(name for name in verb.model_fields if name not in verb.positional)]
    return Page(
        " ".join(["%kd", verb.word(), *words]),
        inspect.getdoc(verb) or "",
        options_of(verb, options) if options else "",
        Source(verb.example_line),
    )


def of_stage(stage: type[Stage]) -> Page:
    """The page about a technique."""
    usual = [name for name in stage.model_fields if not is_advanced(stage, name)]
    rare = [name for name in stage.model_fields if name not in usual]
    return Page(
        f"%kd {stage.id.replace('.', ' ', 1)}",
        inspect.getdoc(stage) or "",
        options_of(stage, [*usual, *rare]) if stage.model_fields else "It has no options of its own.",
        _conditions(stage),
        Table(["option of every stage", "what it does"], _plain(Running)),
        _background(stage),
        Source(sample(stage)),
    )


def options_of(settings: type[Settings], names: Sequence[str]) -> Table:
    """A table of a class's options: name, type, default, bounds, help."""
    return Table(
        ["option", "type", "default", "bounds", "what it does"],
        [[_spelled(settings, name), holds(settings, name), _default(settings, name), bounds(settings, name), explanation(settings, name)] for name in names],
    )


def _background(stage: type[Stage]) -> str:
    """The docstring of a technique's module after its first paragraph: the paper, the formula, pitfalls."""
    if stage.__module__ == "__main__":
        return ""
    return (inspect.getdoc(sys.modules.get(stage.__module__)) or "").partition("\n\n")[2]


def _conditions(stage: type[Stage]) -> str:
    lines = [
        f"{what}: {', '.join(words)}."
        for what, words in (
            ("also known as", stage.other_names()),
            ("needs", stage.needs.names()),
            ("the model must have", [in_words(trait) for trait in sorted(stage.requires)]),
            ("the model must not have", [in_words(trait) for trait in sorted(stage.forbids)]),
            ("adds", [in_words(trait) for trait in sorted(stage.adds)]),
            ("removes", [in_words(trait) for trait in sorted(stage.removes)]),
        )
        if words
    ]
    return "\n".join(lines)


def _plain(settings: type[Settings]) -> list[list[str]]:
    return [
        [_spelled(settings, name) + ("" if kind(settings, name).is_flag else f" {holds(settings, name)}"), field.description or ""]
        for name, field in settings.model_fields.items()
    ]


def _spelled(settings: type[Settings], name: str) -> str:
    return "--NAME {object}" if object_kind(settings, name) == "others" else option(name)


def _default(settings: type[Settings], name: str) -> str:
    field = settings.model_fields[name]
    if field.is_required():
        return "required"
    value = field.default
    return (
        ""
        if value is None or value == () or value == {}
        else ("yes" if value else "no")
        if isinstance(value, bool)
        else " ".join(map(write_value, value))
        if isinstance(value, tuple)
        else " ".join(f"{key}={write_value(each)}" for key, each in value.items())
        if isinstance(value, dict)
        else write_value(value)
    )
