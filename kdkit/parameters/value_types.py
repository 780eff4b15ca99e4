"""The types that an option can have, and how a value of each is written."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from kdkit.errors import KdError
from kdkit.parameters.number_words import number_and_words

if TYPE_CHECKING:
    from kdkit.parameters.settings import Settings


@dataclass(frozen=True)
class Kind:
    """What a field holds, as far as a line or a form must know.

    Attributes:
        base: bool, int, float or str; object for a verb's option that holds an object of the notebook.
        choices: the only values allowed, if there are such.
        optional: None is allowed.
        many: a tuple of values.
        mapping: a dict from names to values.
        words: names of special values that a number may have: `float | Literal["auto"]`.
        unit: of a number.
        share: of a number that is a share of a model's size: "kept" or "removed".
    """

    base: type
    choices: tuple = ()
    optional: bool = False
    many: bool = False
    mapping: bool = False
    words: tuple[str, ...] = ()
    unit: str = ""
    share: str = ""

    @property
    def is_flag(self) -> bool:
        """Whether the option's name alone is a value."""
        return self.base is bool and not self.mapping

    @property
    def several(self) -> bool:
        """Whether the option takes all words up to the next option."""
        return self.many or self.mapping


_BASES = (bool, int, float, str)


def kind(settings: type[Settings], name: str) -> Kind:
    """The kind of one field.

    Raises:
        KdError: its type is none that a line can carry.
    """
    return replace(_kind(settings, name), unit=_declared(settings, name, "unit"), share=_declared(settings, name, "share"))


def _kind(settings: type[Settings], name: str) -> Kind:
    annotation: Any = settings.model_fields[name].annotation
    optional = many = mapping = False
    number, words = number_and_words(annotation)
    if words:
        return Kind(number, optional=type(None) in typing.get_args(annotation), words=words)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [item for item in typing.get_args(annotation) if item is not type(None)]
        optional = len(rest) < len(typing.get_args(annotation))
        annotation = rest[0] if len(rest) == 1 else annotation
    if typing.get_origin(annotation) is tuple and len(typing.get_args(annotation)) == 2 and typing.get_args(annotation)[1] is ...:
        annotation, many = typing.get_args(annotation)[0], True
    if typing.get_origin(annotation) in (dict, Mapping) and typing.get_args(annotation)[0] is str:
        annotation, mapping = typing.get_args(annotation)[1], True
    if typing.get_origin(annotation) is Literal:
        choices = typing.get_args(annotation)
        if len({type(choice) for choice in choices}) == 1 and type(choices[0]) in (int, float, str):
            return Kind(type(choices[0]), choices, optional, many, mapping)
    if annotation in _BASES and not (many and annotation is bool):
        return Kind(annotation, (), optional, many, mapping)
    if annotation is Any and not mapping:
        return Kind(object)
    raise KdError(
        f"{settings.__name__}.{name} has type {settings.model_fields[name].annotation}, which no option can carry",
        "use bool, int, float, str, Literal[...], one of these | None, a number | Literal[words], tuple[one of these, ...], or dict[str, one of these]",
    )


def field_faults(settings: type[Settings]) -> Iterator[str]:
    """What keeps fields from being options, a line each."""
    blank = settings.model_construct()
    for name, field in settings.model_fields.items():
        if name.startswith("no_"):
            yield f"parameter {name}: --no-... is how an option is turned off; name it for what it turns on"
        try:
            this = kind(settings, name)
        except KdError as error:
            yield "; ".join([error.message, *error.hints])
            continue
        if this.base is object:
            yield f"parameter {name}: it has type Any; parameters are plain data, and an object is named: {name}: str = param(..., names='object')"
        if this.several and this.optional:
            yield f"parameter {name}: an empty {'dict' if this.mapping else 'tuple'} means that nothing is set; drop the | None"
        if name.endswith("_") or len(name) == 1:
            yield f"parameter {name}: give it a name of two letters or more, with no _ at its end"
        if not field.is_required():
            try:
                settings.__pydantic_validator__.validate_assignment(blank, name, field.default)
            except Exception as error:  # pydantic's own, or whatever a validator raises
                if "frozen" not in str(error):
                    advice = f"; write {name}: {_written(field.annotation)} | None" if field.default is None else ""
                    yield f"parameter {name}: its default {field.default!r} is not one of its own values{advice}"


def _written(annotation: Any) -> str:
    return getattr(annotation, "__name__", str(annotation))


def object_kind(settings: type[Settings], name: str) -> str:
    """What kind of object a field refers to, see `kdkit.parameters.settings.param`; an empty string for plain data."""
    return _declared(settings, name, "names")


def _declared(settings: type[Settings], name: str, fact: str) -> str:
    extra = settings.model_fields[name].json_schema_extra
    return str(extra.get(fact, "")) if isinstance(extra, dict) else ""
