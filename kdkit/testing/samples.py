"""Samples: a stage to try, and values for its parameters, good ones and bad ones, out of what it declares."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from kdkit.errors import KdError
from kdkit.parameters.bounds import bounds_of
from kdkit.parameters.command_line import read_options
from kdkit.parameters.tokenizer import Reference, read_literal, split
from kdkit.parameters.value_types import kind, object_kind
from kdkit.pipelines.pipeline import Pipeline
from kdkit.stages.example_line import sample
from kdkit.stages.line_options import Line, Running
from kdkit.stages.stage import Stage

ABSENT_LAYER = "no_layer_of_this_name"


def instances_to_try(stage: type[Stage] | Stage | str) -> Iterator[Stage]:
    """A stage as it is tried: as it is given; a class as it says, with its defaults, and as the line in its help says it.

    Raises:
        KdError: a line that is no stage, or of which the zoo has not what it names.
    """
    if isinstance(stage, Stage):
        yield stage
    elif isinstance(stage, str):
        yield Pipeline.of(stage.removeprefix("%kd ")).stages[0]
    else:
        title, required = stage.id.replace(".", " ", 1), [name for name, field in stage.model_fields.items() if field.is_required()]
        if stage.tried_as:
            yield of_line(stage, f"{title} {stage.tried_as}")
        elif not required:
            yield stage.build(title, {})
        with contextlib.nullcontext() if required else contextlib.suppress(KdError):
            yield in_help(stage)


def in_help(stage: type[Stage]) -> Stage:
    """The stage that the example line of its help makes; `{name}` stands for the object that the zoo has for it.

    Raises:
        KdError: the line can't be read.
    """
    return of_line(stage, sample(stage))


def of_line(stage: type[Stage], line: str) -> Stage:
    """The stage that a `%kd` line makes, without what every line may say beside it."""
    title = stage.id.replace(".", " ", 1)
    words = split(line.removeprefix("%kd "))
    if words[:2] != title.split():
        raise KdError(f"{line!r} is no line of {title}", f"begin it with %kd {title}")

    def named(name: str, word: Any) -> Any:
        if not isinstance(word, Reference):
            return word
        if (text := read_literal(word)) is not None:
            return text
        names = OBJECTS.get(object_kind(stage, name), ("",))
        return word.source if word.source in names else names[0]

    values = read_options(stage, words[2:], title, named, (Running, Line))
    return stage.build(title, {name: value for name, value in values.items() if name in stage.model_fields})


OBJECTS: Mapping[str, tuple[str, ...]] = {
    "model": ("teacher", "one", "other"),
    "data": ("train", "eval", "calibration", "validation", "labelled", "unlabelled"),
    "function": ("function",),
    "object": ("object",),
}
"""Names of the zoo's objects by what an option refers to; the first stands for one that the zoo does not know."""


def good(stage: Stage) -> Iterator[tuple[str, Any]]:
    """(parameter, value) for values that its declaration allows, beside those of the stage itself."""
    for name in type(stage).model_fields:
        this = kind(type(stage), name)
        if this.mapping:
            yield from ((name, value) for value in _mappings(type(stage), name))
            continue
        values = list(this.choices) or _within(type(stage), name) if this.base is not str or this.choices else _texts(type(stage), name)
        yield from ((name, (value, *values[:1]) if this.many else value) for value in values)
        yield from ((name, word) for word in this.words)
        if this.optional:
            yield name, None


def _mappings(stage: type[Stage], name: str) -> list[dict[str, Any]]:
    """Each value under one name, each name with one value, all names together, and nothing."""
    names = [*_texts(stage, name), "a=b"] if object_kind(stage, name) in ("", "layers", "path") else list(OBJECTS.get(object_kind(stage, name), ("",)))
    values = values_of_entry(stage, name)
    return [*({key: values[0]} for key in names), *({names[0]: value} for value in values), dict.fromkeys(names, values[-1]), {}]


def values_of_entry(stage: type[Stage], name: str) -> list[Any]:
    """Values that a name of a mapping may have."""
    this = kind(stage, name)
    return list(this.choices) or (["x=1 'y'", "-z"] if this.base is str else _within(stage, name))


def _within(stage: type[Stage], name: str) -> list[Any]:
    this = kind(stage, name)
    if this.base is bool:
        return [True, False]
    limits = bounds(stage, name)
    step = 1 if this.base is int else 1e-3
    ends = [value for value in (limits.get("ge"), limits.get("le")) if value is not None]
    ends += [limits["gt"] + step] if "gt" in limits else []
    ends += [limits["lt"] - step] if "lt" in limits else []
    return [this.base(value) for value in ends] or [this.base(3), this.base(-2)]


def _texts(stage: type[Stage], name: str) -> list[str]:
    """Words as people write them, for options that take any."""
    return ["layer1.*", "it's", '{a} "b"', "-x #1", "one\ntwo"] if object_kind(stage, name) in ("", "layers", "path") else []


def bad(stage: type[Stage]) -> Iterator[tuple[str, Any]]:
    """(parameter, value) for values that its declaration rules out."""
    for name in stage.model_fields:
        this, limits = kind(stage, name), bounds(stage, name)
        wrong: list[Any] = [limits[word] + step for word, step in (("ge", -1), ("gt", 0), ("le", 1), ("lt", 0)) if word in limits]
        wrong += ["none_of_these"] if this.choices or this.base in (int, float) else []
        yield from ((name, {ABSENT_LAYER: value} if this.mapping else (value,) if this.many else value) for value in wrong)


def bounds(stage: type[Stage], name: str) -> dict[str, float]:
    """The bounds of a number, by the words `param` has for them."""
    return {word: float(bound) for word, bound in bounds_of(stage, name).items()}


def with_value(stage: Stage, name: str, value: Any) -> Stage:
    """The same stage with another value, validated.

    Raises:
        KdError: it is none that the parameter can have.
    """
    return type(stage).build(stage.title, dict(stage) | {name: value})


def layer_options(stage: type[Stage]) -> list[str]:
    """The parameters that hold patterns of layers."""
    return [name for name in stage.model_fields if object_kind(stage, name) == "layers"]
