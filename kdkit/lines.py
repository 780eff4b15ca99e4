"""Lines: a class's fields as `--options`, both ways.

`split` cuts a line into words, `read_options` turns words into values for a class's fields, `write_options` turns an
instance back into words. A line written is read back as the same instance, whatever its strings hold.
"""

from __future__ import annotations

import shlex
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kdkit.errors import KdError, did_you_mean

if typing.TYPE_CHECKING:
    from kdkit.stage import Settings


@dataclass(frozen=True)
class Kind:
    """What a field holds, as far as a line or a form must know.

    Attributes:
        base: bool, int, float or str.
        choices: the only values allowed, if there are such.
        optional: None is allowed.
        many: a tuple of values.
    """

    base: type
    choices: tuple = ()
    optional: bool = False
    many: bool = False


_BASES = (bool, int, float, str)


def kind(settings: type[Settings], name: str) -> Kind:
    """The kind of one field.

    Raises:
        KdError: its type is none that a line can carry.
    """
    annotation, optional, many = settings.model_fields[name].annotation, False, False
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [item for item in typing.get_args(annotation) if item is not type(None)]
        optional = len(rest) < len(typing.get_args(annotation))
        annotation = rest[0] if len(rest) == 1 else annotation
    if typing.get_origin(annotation) is tuple and len(typing.get_args(annotation)) == 2 and typing.get_args(annotation)[1] is ...:
        annotation, many = typing.get_args(annotation)[0], True
    if typing.get_origin(annotation) is Literal:
        choices = typing.get_args(annotation)
        if len({type(choice) for choice in choices}) == 1 and type(choices[0]) in (int, float, str):
            return Kind(type(choices[0]), choices, optional, many)
    if annotation in _BASES and not (many and annotation is bool):
        return Kind(annotation, (), optional, many)
    raise KdError(
        f"{settings.__name__}.{name} has type {settings.model_fields[name].annotation}, which no option can carry",
        "use bool, int, float, str, Literal[...], one of these | None, or tuple[one of these, ...]",
    )


def field_faults(settings: type[Settings]) -> Iterator[str]:
    """What keeps fields from being options, a line each."""
    for name, field in settings.model_fields.items():
        if name.startswith("no_"):
            yield f"parameter {name}: --no-... is how an option is turned off; name it for what it turns on"
        try:
            kind(settings, name)
        except KdError as error:
            yield error.message
            continue
        if not field.is_required():
            try:
                settings.__pydantic_validator__.validate_assignment(settings.model_construct(), name, field.default)
            except Exception as error:  # pydantic's own, or whatever a validator raises
                if "frozen" not in str(error):
                    yield f"parameter {name}: its default {field.default!r} is not one of its own values"


def split(line: str) -> list[str]:
    """Cut a line into words: quotes group, `#` starts a comment, a backslash is a character like any other.

    >>> split("prune channels --layers 'a b' # comment")
    ['prune', 'channels', '--layers', 'a b']

    Raises:
        KdError: a quote is not closed.
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.escape = True, ""
    try:
        return list(lexer)
    except ValueError as error:
        raise KdError(f"{line.strip()!r}: {str(error).lower()}", "close the quote, or put the word in the other kind of quotes") from error


def option(name: str) -> str:
    """A field's name as an option.

    >>> option("learning_rate")
    '--learning-rate'
    """
    return "--" + name.replace("_", "-")


def write_options(settings: Settings) -> list[str]:
    """The words that stand for what differs from the defaults, quoted where they must be."""
    return [word for name, value in settings.changed().items() for word in _write(option(name), value)]


def _write(flag: str, value: Any) -> list[str]:
    if value is None or value is False or value == ():
        return ["--no-" + flag[2:]]
    if value is True:
        return [flag]
    if isinstance(value, tuple):
        return [f"{flag}={_word(item)}" for item in value] if any(str(item)[:1] in ("-", "") for item in value) else [flag, *map(_word, value)]
    return [f"{flag}={_word(value)}"] if str(value).startswith("--") else [flag, _word(value)]


def _word(value: Any) -> str:
    text = repr(value) if isinstance(value, float) else str(value)
    # braces, dollars and ats at the start would be read as references to objects and versions
    return "'" + text + "'" if text[:1] in ("{", "$", "@") and "'" not in text else shlex.quote(text)


def read_options(settings: type[Settings], words: Sequence[Any], title: str, resolve: Callable[[str, Any], Any] = lambda name, word: word) -> dict[str, Any]:
    """Turn words into values for the fields of `settings`.

    Args:
        settings: the class whose fields are the options.
        words: what follows the command; strings, or objects that stood there as `{expression}`.
        title: what the line is about, for messages.
        resolve: (field name, word) -> value, for words that stand for objects.

    Raises:
        KdError: an option that is not there, a value that is missing or not of the field's type.
    """
    values: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not (isinstance(word, str) and word.startswith("--")):
            raise KdError(f"{title}: {word!r} stands where an option was expected", "options look like --name value", _listing(settings))
        flag, joined, tail = word.partition("=")
        name, off = _field(settings, flag, title)
        this = kind(settings, name)
        if off:
            if joined:
                raise KdError(f"{title}: {flag} takes no value")
            values[name] = False if this.base is bool else () if this.many else None
        elif this.base is bool and not joined:
            values[name] = True
        else:
            taken = [tail] if joined else _take(rest, this.many)
            if not taken:
                raise KdError(f"{title}: {flag} wants a value", f"{flag}: {settings.model_fields[name].description}")
            made = [_value(this, resolve(name, item), f"{title}: {flag}") for item in taken]
            values[name] = (*values.get(name, ()), *made) if this.many else made[0]
    return values


def _field(settings: type[Settings], flag: str, title: str) -> tuple[str, bool]:
    name = flag[2:].replace("-", "_")
    if name in settings.model_fields:
        return name, False
    if name.startswith("no_") and name[3:] in settings.model_fields:
        this = kind(settings, name[3:])
        if this.base is bool or this.optional or this.many:
            return name[3:], True
        raise KdError(f"{title}: {option(name[3:])} can't be turned off", f"{option(name[3:])}: {settings.model_fields[name[3:]].description}")
    raise KdError(f"{title} has no option {flag}", did_you_mean(flag, map(option, settings.model_fields)), _listing(settings))


def _listing(settings: type[Settings]) -> str:
    names = [option(name) for name in settings.model_fields]
    return f"options: {' '.join(names)}" if names else "it takes no options"


def _take(rest: list[Any], many: bool) -> list[Any]:
    taken: list[Any] = []
    while rest and not (isinstance(rest[0], str) and rest[0].startswith("--")) and (many or not taken):
        taken.append(rest.pop(0))
    return taken


_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def _value(this: Kind, word: Any, where: str) -> Any:
    if not isinstance(word, str):
        return word
    if this.base is bool:
        if word.lower() in _TRUE + _FALSE:
            return word.lower() in _TRUE
        raise KdError(f"{where} {word!r} is neither true nor false")
    if this.base is str:
        return word
    try:
        return this.base(word)
    except ValueError as error:
        raise KdError(f"{where} {word!r} is not {'a whole number' if this.base is int else 'a number'}") from error
