"""A stage made from a function, or completed from a class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import pydantic

from kdkit.errors import KdError, did_you_mean
from kdkit.parameters.settings import param
from kdkit.stages.stage import Stage

if TYPE_CHECKING:
    from torch import nn

    from kdkit.stages.context import Context


def _check_facts(id: str, facts: Iterable[str]) -> None:
    known = sorted(Stage.__class_vars__ - {"id", "model_config"})
    for name in facts:
        if name not in known:
            raise KdError(f"stage({id!r}): a stage has no fact {name!r}", did_you_mean(name, known), f"facts: {', '.join(known)}")


def _completed(written: type, id: str, facts: dict[str, Any]) -> type[Stage]:
    if not issubclass(written, Stage):
        raise KdError(f"{written.__name__} is a class, but not a kdkit.Stage", f"write class {written.__name__}(kdkit.Stage), or a function of model and context")
    for name, value in {"id": id, **facts}.items():
        setattr(written, name, value)
    return written


def _of_function(function: Callable, id: str, facts: dict[str, Any]) -> type[Stage]:
    options = _options(function)

    def apply(self: Stage, model: nn.Module, context: Context) -> nn.Module | None:
        return function(model, context, **dict(self))

    body: dict[str, Any] = {"id": id, "apply": apply, "source": function, **facts}
    annotations = dict.fromkeys(body, ClassVar) | {item.name: item.annotation for item in options}
    body |= {item.name: _declared(item) for item in options}
    body |= {"__module__": function.__module__, "__qualname__": function.__qualname__, "__doc__": function.__doc__, "__annotations__": annotations}
    try:
        made = type(Stage)(function.__name__.title().replace("_", ""), (Stage,), body)  # type: ignore[misc]
        made.model_rebuild()  # a parameter that is no plain data is refused here, in the author's cell
    except pydantic.errors.PydanticUserError as error:
        raise KdError(
            f"{function.__name__}: {str(error).splitlines()[0].partition('. Set `')[0]}",  # what follows is for authors of pydantic models
            "a parameter is plain data; an object is named: teacher: str = kdkit.param('teacher', 'who teaches', names='model')",
        ) from error
    return made


def _options(function: Callable) -> list[inspect.Parameter]:
    """The parameters of a function behind model and context.

    Raises:
        KdError: there are none of these two, or a parameter can't be an option.
    """
    given = list(inspect.signature(function, eval_str=True).parameters.values())
    loose = [item for item in given if item.kind in (item.VAR_POSITIONAL, item.VAR_KEYWORD, item.POSITIONAL_ONLY)]
    if len(given) < 2 or loose or given[1].default is not inspect.Parameter.empty:
        raise KdError(f"{function.__name__}{inspect.signature(function)} is not the form of a stage", "write def name(model, context, *, ratio: float = 0.5)")
    options = given[2:]
    for item in options:
        if item.annotation is item.empty:
            raise KdError(f"{function.__name__}: {item.name} has no type", f"write {item.name}: float = kdkit.param(0.5, 'what it does')")
        if item.name.startswith("_"):
            raise KdError(f"{function.__name__}: a parameter can't be named {item.name}, as a line would say --{item.name}", f"call it {item.name.strip('_') or 'ratio'}")
        if hasattr(Stage, item.name):
            raise KdError(f"{function.__name__}: a parameter can't be named {item.name}, as every stage has that", "choose another name")
    return options


def _declared(item: inspect.Parameter) -> Any:
    plain = not isinstance(item.default, pydantic.fields.FieldInfo)
    return param(... if item.default is item.empty else item.default, item.name.replace("_", " ")) if plain else item.default
