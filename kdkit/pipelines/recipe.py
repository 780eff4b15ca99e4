"""Recipes: a pipeline as YAML, of which nothing is believed: each field has a type, and size and depth have a bound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter

from kdkit.errors import KdError, brief, printable
from kdkit.parameters.schema import Record, read_as
from kdkit.parameters.settings import option
from kdkit.parameters.value_types import object_kind
from kdkit.plugins.manager import manager
from kdkit.stages.stage import Stage
from kdkit.training.together import Together

SCHEMA = 1
"""The number of the recipe format."""


def _one_line(text: str) -> str:
    if printable(text) != text:
        raise ValueError("it holds a line break or another control character")
    return text


def _plain(value: Any) -> Any:
    """A value that an option can have: a number, a text, None, or a flat list or dict of these."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else (value,)
    if isinstance(value, dict) and not all(isinstance(name, str) for name in value):
        raise ValueError("it has a key that is not text")
    if not all(item is None or isinstance(item, bool | int | float | str) for item in items):
        raise ValueError("it is not a number, a text, or a list or mapping of these")
    return value


_Name = Annotated[str, Field(max_length=200), AfterValidator(_one_line)]
_Value = Annotated[Any, AfterValidator(_plain)]


_REWRITE = "session.recipe().save(path) writes a recipe"


class Recipe(Record):
    """The fields of a recipe; its steps are read one by one."""

    kdkit: int
    name: _Name | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    distributions: dict[_Name, _Name] | None = None
    steps: list[Any]


class _Step(Record):
    stage: _Name
    version: int = Field(1, ge=1)
    options: dict[_Name, _Value] = {}


class _Group(Record):
    together: list[Any]


_RECIPE, _STEP, _GROUP = TypeAdapter(Recipe), TypeAdapter(_Step), TypeAdapter(_Group)


def read_header(data: Any, where: str) -> Recipe:
    """A recipe's plain data, with its fields validated but its stages not yet made; no plugin is needed.

    Raises:
        KdError: it is no recipe, or of another format; the message names the field.
    """
    if not isinstance(data, dict) or "kdkit" not in data or not isinstance(data.get("steps"), list):
        raise KdError(f"{where} is not a kdkit recipe", f"a recipe has the keys kdkit and steps; {_REWRITE}")
    if data["kdkit"] != SCHEMA or isinstance(data["kdkit"], bool):
        raise KdError(f"{where} is of recipe format {brief(data['kdkit'])}; this kdkit reads {SCHEMA}", "update kdkit")
    return read_as(_RECIPE, data, where, _REWRITE)


def distributions(stages: Iterable[Stage]) -> dict[str, str]:
    """The versions of the distributions that stages come from, kdkit's among them."""
    found = {}
    for stage in stages:
        for each in stage.stages if isinstance(stage, Together) else (stage,):
            plugin = manager().provider(each.id)
            if plugin.distribution:
                found[plugin.distribution] = plugin.version
    return dict(sorted(found.items()))


def write_step(stage: Stage) -> dict[str, Any]:
    """A stage, or a group of stages, as plain data."""
    if isinstance(stage, Together):
        return {"together": [write_step(each) for each in stage.stages]}
    options = {name: _written(value) for name, value in stage.changed().items()}
    return {"stage": stage.id, "version": stage.version, "options": options}


def _written(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, dict) else value


def read_step(step: Any, where: str, used: Mapping[str, str], anywhere: bool = False) -> Stage:
    """The stage, or the group of stages, that plain data describes.

    Args:
        step: the data.
        where: it is, for messages.
        used: the distributions that the recipe was made with.
        anywhere: a file or folder that an option names may be outside of the working directory.

    Raises:
        KdError: a field is wrong, the stage is not installed, an option is out of bounds, or a path is outside of the working directory.
    """
    if isinstance(step, dict) and "together" in step:
        group = read_as(_GROUP, step, where, _REWRITE).together
        stages = tuple(_read_stage(each, f"{where}, stage {number} of together", used, anywhere) for number, each in enumerate(group, 1))
        try:
            return Together(stages=stages)
        except KdError as error:
            raise error.inside(where) from None
    return _read_stage(step, where, used, anywhere)


def _read_stage(step: Any, where: str, used: Mapping[str, str], anywhere: bool) -> Stage:
    if not isinstance(step, dict) or "stage" not in step:
        raise KdError(f"{where} is not a stage", "a step has the keys stage and options, or together")
    read = read_as(_STEP, step, where, _REWRITE)
    try:
        made = manager().stage(read.stage)
    except KdError as error:
        raise KdError(
            f"{where}: {error.message}", *error.hints, f"the recipe was made with {', '.join(f'{name} {version}' for name, version in used.items())}" if used else ""
        ) from error
    if read.version > made.version:
        raise KdError(f"{where}: {read.stage} of version {read.version}; version {made.version} is installed", f"update {manager().provider(read.stage).distribution}")
    stage = made.build(f"{where}, {read.stage.replace('.', ' ')}", read.options)
    if not anywhere:
        _check_paths(stage, where)
    return stage


def _check_paths(stage: Stage, where: str) -> None:
    """Check that no option names a file or folder outside of the working directory."""
    for name, value in stage.changed().items():
        texts = value if isinstance(value, tuple | dict) else (value,)
        for text in texts if object_kind(type(stage), name) == "path" else ():
            if text is not None and not _is_inside(text):
                raise KdError(
                    f"{where}, {stage.title}: {option(name)} {brief(text)} is outside of the working directory",
                    "if you trust the recipe with that place: %kd run RECIPE --anywhere",
                    "in Python: Pipeline.load(path, anywhere=True), or session.recipe(anywhere=True)",
                    "or write a path inside the working directory, such as runs/kept",
                )


def _is_inside(text: str) -> bool:
    """Whether a path is in the working directory, also where it is read on another system, and with links followed."""
    parts = PureWindowsPath(text)
    if parts.drive or parts.root or text.startswith("~") or ".." in parts.parts:
        return False
    try:
        return Path(text).resolve().is_relative_to(Path.cwd().resolve())
    except (OSError, ValueError, RuntimeError):  # a null character, links in a circle
        return False
