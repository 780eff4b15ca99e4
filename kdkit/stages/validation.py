"""Validation of stage classes, before they are registered."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from kdkit.__version__ import __version__
from kdkit.parameters.value_types import field_faults
from kdkit.stages.line_options import LINE_OPTIONS, RESERVED_WORDS
from kdkit.stages.stage import API, OLDEST_API, Needs, Stage


def validate_api(api: Any) -> Iterator[str]:
    """Why this kdkit does not support a contract version; nothing if it does."""
    if not isinstance(api, int):
        yield f"its api {api!r} is not the number of a contract; this kdkit {__version__} speaks {API}"
    elif api > API:
        yield f"written for contract {api}, and this kdkit {__version__} speaks no later one than {API}; update kdkit: pip install -U kdkit"
    elif api < OLDEST_API:
        yield f"written for contract {api}, and this kdkit {__version__} speaks none before {OLDEST_API}; update the plugin"


def _can_be_handed(function: Callable, count: int) -> bool:
    """Whether a function can be called with so many positional arguments."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    return True


_ID = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*\.[a-z][a-z0-9]*(-[a-z0-9]+)*")


def validate_stage(stage: type[Stage]) -> Iterator[str]:
    """Problems of a stage class, one line each; none if it is valid."""
    if not (isinstance(stage, type) and issubclass(stage, Stage)):
        yield f"{stage!r} is not a subclass of kdkit.Stage"
        return
    where = stage.__qualname__ if stage.__module__ == "__main__" else f"{stage.__module__}.{stage.__qualname__}"
    if not _ID.fullmatch(str(stage.id)):
        yield f'{where}: id {stage.id!r} is not "family.technique" in lower-case words, such as prune.mine'
    elif (family := stage.id.partition(".")[0]) in RESERVED_WORDS:
        yield f"{where}: family {family} is a verb of %kd; choose another name"
    yield from (f"{where}: {fault}" for fault in validate_api(stage.api))
    if not isinstance(stage.needs, Needs):
        yield f"{where}: needs is a {type(stage.needs).__name__}; write needs = kdkit.Needs(train=True) or the like"
    for name in ("requires", "forbids", "adds", "removes"):
        if isinstance(getattr(stage, name), str):
            yield f"{where}: {name} is a string, not a set; write {name} = {{{str(getattr(stage, name))!r}}}"
    if not isinstance(stage.known_as, tuple) or not all(isinstance(name, str) and name.strip() for name in stage.known_as):
        yield f'{where}: known_as is {stage.known_as!r}; write known_as = ("RKD",) or the like'
    if stage.apply is Stage.apply and stage.storage is Stage.storage:
        yield f"{where}: has no apply(self, model, context)"
    for name in ("apply", "check", "forecast", "part"):
        if hasattr(stage, name) and not _can_be_handed(getattr(stage, name), 3):
            yield f"{where}: {name}{inspect.signature(getattr(stage, name))} has the wrong signature; write {name}(self, model, context)"
    if "__doc__" not in vars(stage) or not stage.__doc__:
        yield f"{where}: has no docstring; its first sentence is the help line"
    for name, field in stage.model_fields.items():
        if name in LINE_OPTIONS:
            yield f"{where}: parameter {name} is an option of every %kd line; call it otherwise"
        if not field.description:
            yield f"{where}: parameter {name} has no help; declare it as {name} = param(default, help)"
    yield from (f"{where}: {fault}" for fault in field_faults(stage))
