"""Bounds of numbers: of a parameter's value, or of each value where it holds several."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from pydantic_core import core_schema

from kdkit.parameters.number_words import number_and_words

if TYPE_CHECKING:
    from pydantic import BaseModel, GetCoreSchemaHandler


@dataclass(frozen=True)
class Bounds:
    """Bounds in pydantic's words, which also hold for each item of a tuple and each value of a dict, and not for the words beside a number."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def set(self) -> dict[str, float]:
        """The bounds that are set, by name."""
        return {name: bound for name, bound in asdict(self).items() if bound is not None}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        origin, arguments = typing.get_origin(source), typing.get_args(source)
        if origin is tuple and arguments[1:] == (...,):
            return handler(tuple.__class_getitem__((self._bounded(arguments[0]), ...)))
        if origin in (dict, Mapping) and len(arguments) == 2:
            return handler(dict.__class_getitem__((arguments[0], self._bounded(arguments[1]))))
        number, words = number_and_words(source)
        if words:
            others = {*words, None} if type(None) in typing.get_args(source) else {*words}
            return core_schema.no_info_wrap_validator_function(
                lambda value, check: value if isinstance(value, str | None) and value in others else check(value), handler(self._bounded(number))
            )
        return handler(self._bounded(source))

    def _bounded(self, annotation: Any) -> Any:
        return Annotated[annotation, Field(ge=self.ge, gt=self.gt, le=self.le, lt=self.lt)]


def bounds_of(settings: type[BaseModel], name: str) -> dict[str, float]:
    """The bounds of a field, by pydantic's words for them.

    >>> from kdkit.parameters.settings import Settings, param
    >>> class Sample(Settings):
    ...     ratio: float = param(0.5, "share", gt=0, le=1)
    >>> bounds_of(Sample, "ratio")
    {'gt': 0, 'le': 1}
    """
    rules = settings.model_fields[name].metadata
    return {word: bound for word in ("ge", "gt", "le", "lt") for rule in rules if (bound := getattr(rule, word, None)) is not None}


def outside(values: Iterable[Any], bounds: Mapping[str, float]) -> list[Any]:
    """The numbers that break a bound.

    >>> outside((0, 0.5, 1, "many"), {"gt": 0, "le": 1})
    [0]
    """
    holds = {"ge": float.__ge__, "gt": float.__gt__, "le": float.__le__, "lt": float.__lt__}
    return [value for value in values if isinstance(value, int | float) and not all(holds[word](float(value), float(bound)) for word, bound in bounds.items())]
