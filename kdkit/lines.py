"""Lines: a class's fields as `--options`, both ways.

`split` cuts a line into words, `read_options` turns words into values for a class's fields, `write_options` turns an
instance back into words. A line written is read back as the same instance, whatever its strings hold.
"""

from __future__ import annotations

import ast
import difflib
import os
import re
import shlex
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kdkit.errors import KdError, did_you_mean

if typing.TYPE_CHECKING:
    from kdkit.contract import Settings


@dataclass(frozen=True)
class Kind:
    """What a field holds, as far as a line or a form must know.

    Attributes:
        base: bool, int, float or str; object for a verb's option that holds an object of the notebook.
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
    annotation: Any = settings.model_fields[name].annotation
    optional = many = False
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
    if annotation is Any:
        return Kind(object)
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
            this = kind(settings, name)
        except KdError as error:
            yield "; ".join([error.message, *error.hints])
            continue
        if this.base is object:
            yield f"parameter {name}: it has type Any; parameters are plain data, and an object is named: {name}: str = param(..., refers='object')"
        if this.many and this.optional:
            yield f"parameter {name}: an empty tuple is a tuple's nothing; drop the | None"
        if name.endswith("_") or len(name) == 1:
            yield f"parameter {name}: give it a name of two letters or more, with no _ at its end"
        if not field.is_required():
            try:
                settings.__pydantic_validator__.validate_assignment(settings.model_construct(), name, field.default)
            except Exception as error:  # pydantic's own, or whatever a validator raises
                if "frozen" not in str(error):
                    advice = f"; write {name}: {_written(field.annotation)} | None" if field.default is None else ""
                    yield f"parameter {name}: its default {field.default!r} is not one of its own values{advice}"


def _written(annotation: Any) -> str:
    return getattr(annotation, "__name__", str(annotation))


@dataclass(frozen=True)
class Reference:
    """A Python expression that stood in a line as `{expression}` or `$name`; the notebook puts the object in its place.

    Attributes:
        source: the expression.
        flag: the option it was joined to with `=`, if it was.
    """

    source: str
    flag: str = ""

    def __str__(self) -> str:
        return "{" + self.source + "}"


def split(line: str) -> list[Any]:
    """Cut a line into words: quotes group, a word that begins with `#` starts a comment, a backslash is a character like any other.

    A word that is `{expression}` or `$name`, or `--option=` one of these, is a `Reference`; `{{` at the start of a word is a
    brace. A `;` that ends the line is no part of it.

    >>> split("prune channels --layers 'a b' {loaders['train']} {{x}}; # comment")
    ['prune', 'channels', '--layers', 'a b', Reference(source="loaders['train']", flag=''), '{x}']

    Raises:
        KdError: a quote or a brace is not closed.
    """
    words, at = [], 0
    while at < len(line) and line[at] != "#" and not _END.match(line, at):
        if line[at].isspace():
            at += 1
        else:
            word, at = _word_at(line, at)
            words.append(word)
    return words


def silenced(line: str) -> bool:
    """Whether a line ends with `;`, which asks for no output.

    >>> [silenced(line) for line in ("undo;", "undo  ; # back", "undo", "save 'a;'", "save a#;")]
    [True, True, False, False, True]
    """
    at = 0
    while at < len(line) and line[at] != "#":
        if _END.match(line, at):
            return True
        at = at + 1 if line[at].isspace() else _word_at(line, at)[1]
    return False


_END = re.compile(r";\s*(#.*)?\Z", re.DOTALL)
_JOINED = re.compile(r"(--[A-Za-z][\w-]*)=")
_NAME = re.compile(r"\$([^\W\d]\w*)")


def _word_at(line: str, at: int) -> tuple[str | Reference, int]:
    """The word that begins at `at`, and where it ends."""
    joined = _JOINED.match(line, at)
    value = joined.end() if joined else at
    if (line.startswith("{", value) and not line.startswith("{{", value)) or _NAME.match(line, value):
        source, at = _expression(line, value)
        return Reference(source, joined[1] if joined else ""), at
    text, escaped = line[at:value], line.startswith("{{", value)
    at = value
    while at < len(line) and not line[at].isspace() and not _END.match(line, at):
        if line[at] in "'\"":
            quoted, at = _quoted(line, at)
            text += quoted
        else:
            text += line[at]
            at += 2 if escaped and line[at : at + 2] in ("{{", "}}") else 1
    return text, at


def _quoted(line: str, at: int) -> tuple[str, int]:
    close = line.find(line[at], at + 1)
    if close < 0:
        raise KdError(f"{line.strip()!r}: a quote is not closed", "close the quote, or put the word in the other kind of quotes")
    return line[at + 1 : close], close + 1


def _expression(line: str, at: int) -> tuple[str, int]:
    """The source of the reference that begins at `at`, and where it ends: at the first brace up to which it is Python."""
    name = _NAME.match(line, at)
    ends = [name.end()] if name else [brace.end() for brace in re.compile("}").finditer(line, at)]
    for end in ends:
        source = name[1] if name else line[at + 1 : end - 1].strip()
        if _is_python(source):
            if end < len(line) and not line[end].isspace() and not _END.match(line, end):
                raise KdError(f"{line[at:end]} is followed by {line[end]!r}", "an object stands alone: {expression} or $name; quote the word if it is meant as text")
            return source, end
    raise KdError(f"{line[at:].strip()!r} is not {{a Python expression}}", "close the brace and look at what is inside it; quote the word if it is meant as text")


def _is_python(source: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            ast.parse(source, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def option(name: str) -> str:
    """A field's name as an option; a name that Python keeps for itself has a `_` behind it, and one letter takes one dash.

    >>> option("learning_rate"), option("as_"), option("o")
    ('--learning-rate', '--as', '-o')
    """
    return f"-{name}" if len(name) == 1 else "--" + name.rstrip("_").replace("_", "-")


def write_options(settings: Settings) -> list[str]:
    """The words that stand for what differs from the defaults, quoted where they must be."""
    return write_values(type(settings), settings.changed())


def write_values(settings: type[Settings], values: Mapping[str, Any]) -> list[str]:
    """The words that stand for values of a class's fields, quoted where they must be; a `Reference` stands as it was written.

    >>> from kdkit.contract import Settings, param
    >>> class Sample(Settings):
    ...     rate: float = param(0.5, "a number")
    ...     teacher: str = param("", "a model", refers="model")
    >>> write_values(Sample, {"rate": 0.1, "teacher": Reference("nets['big one']")})
    ['--rate', '0.1', '--teacher', "{nets['big one']}"]
    """
    return [word for name, value in values.items() for word in _write(option(name), value, kind(settings, name))]


def _write(flag: str, value: Any, this: Kind) -> list[str]:
    if this.base is bool and value is None:
        return [f"{flag}=none"]
    if value is None or value is False or value == ():
        return ["--no-" + flag[2:]]
    if value is True:
        return [flag]
    if isinstance(value, tuple):
        return [f"{flag}={_word(item)}" for item in value] if any(str(item)[:1] in ("-", "") for item in value) else [flag, *map(_word, value)]
    return [f"{flag}={_word(value)}"] if str(value).startswith("-") else [flag, _word(value)]


def _word(value: Any) -> str:
    if isinstance(value, Reference):
        return str(value)
    return shlex.quote(repr(value) if isinstance(value, float) else str(value))


def read_options(
    settings: type[Settings],
    words: Sequence[Any],
    title: str,
    resolve: Callable[[str, Any], Any] | None = None,
    beside: Sequence[type[Settings]] = (),
    places: Sequence[str] = (),
) -> dict[str, Any]:
    """Turn words into values for the fields of `settings`.

    Args:
        settings: the class whose fields are the options.
        words: what follows the command; strings and references.
        title: what the line is about, for messages.
        resolve: (field name, word) -> value, for words that stand for objects; without it an expression is refused.
        beside: other classes whose options may stand on the same line; a field of `settings` wins over one of theirs.
        places: fields that may be given by position, in order; a tuple takes all that is left.

    A field that refers to "others" is given a dict of the options that none of the classes has.

    Raises:
        KdError: an option that is not there, a value that is missing or not of the field's type.
    """
    line = _Line(settings, beside, title, resolve)
    rest, free = list(words), list(places)
    while rest:
        word = rest.pop(0)
        if line.is_option(word):
            line.read(word, rest)
        elif free:
            name = free[0] if line.kind(free[0]).many else free.pop(0)
            line.put(name, [word], name.rstrip("_").upper())
        else:
            raise KdError(f"{title}: {str(word)!r} stands where an option was expected", "options look like --name value", line.listing)
    return line.values


class _Line:
    """One line as it is read: the classes that share it, and the values found so far."""

    def __init__(self, settings: type[Settings], beside: Sequence[type[Settings]], title: str, resolve: Callable[[str, Any], Any] | None):
        self.title, self.settings, self._resolve = title, settings, resolve
        self.owners = {name: owner for owner in reversed((settings, *beside)) for name in owner.model_fields}
        self.others = next((name for name in settings.model_fields if refers(settings, name) == "others"), "")
        self.names = {option(name): name for name in self.owners if name != self.others}
        self.values: dict[str, Any] = {}

    def kind(self, name: str) -> Kind:
        return kind(self.owners[name], name)

    def resolve(self, name: str, word: Any) -> Any:
        """What a word stands for."""
        if self._resolve is not None:
            return self._resolve(name, word)
        if isinstance(word, Reference):
            raise KdError(
                f"{self.title}: {option(name)} {word}: objects can be named like this on a notebook's %kd line only",
                "give the object to the session by a name: session.set(name=object), and write the name",
            )
        return word

    def is_option(self, word: Any) -> bool:
        flag = word if isinstance(word, str) else getattr(word, "flag", "")
        return flag.startswith("--") or flag.partition("=")[0] in self.names

    def read(self, word: Any, rest: list[Any]) -> None:
        """Read the option `word`, and of `rest` what belongs to it."""
        flag, joined, tail = (word.flag, "=", Reference(word.source)) if isinstance(word, Reference) else word.partition("=")
        name, off = self.field(flag.replace("_", "-"))
        if not name:
            self.values.setdefault(self.others, {})[flag[2:].replace("-", "_")] = self.resolve(self.others, tail if joined else self.taken(flag, rest)[0])
            return
        this = self.kind(name)
        if off:
            if joined:
                raise KdError(f"{self.title}: {flag} takes no value")
            self.values[name] = False if this.base is bool else () if this.many else None
        elif this.base is bool and not joined:
            self.values[name] = True
        else:
            self.put(name, [tail] if joined else self.taken(flag, rest, this.many), flag)

    def put(self, name: str, words: list[Any], flag: str) -> None:
        """Make values of words and keep them under a field's name."""
        this = self.kind(name)
        made = [_value(this, self.resolve(name, word), f"{self.title}: {flag}") for word in words]
        if this.many:
            flat = [item for value in made for item in (value if isinstance(value, (list, tuple)) else [value])]
            self.values[name] = (*(self.values.get(name) or ()), *flat)
        else:
            self.values[name] = made[0]

    def field(self, flag: str) -> tuple[str, bool]:
        """(name, whether it is turned off) of an option; no name for one that goes to the others."""
        if flag in self.names:
            return self.names[flag], False
        positive = "--" + flag.removeprefix("--no-")
        if flag.startswith("--no-") and positive in self.names:
            this = self.kind(self.names[positive])
            if this.base is bool or this.optional or this.many:
                return self.names[positive], True
            raise KdError(f"{self.title}: {positive} can't be turned off", self.help(positive))
        # --teacher2 is another teacher, --trian is a slip
        slip = difflib.get_close_matches(flag, self.names, n=1, cutoff=0.8) and not any(flag.startswith(known) for known in self.names)
        if self.others and flag[2:].replace("-", "_").isidentifier() and not slip:
            return "", False
        raise KdError(f"{self.title} has no option {flag}", did_you_mean(flag, self.names), self.listing)

    def taken(self, flag: str, rest: list[Any], many: bool = False) -> list[Any]:
        """The words after an option that are its value, taken from `rest`."""
        taken: list[Any] = []
        while rest and not self.is_option(rest[0]) and (many or not taken):
            taken.append(rest.pop(0))
        if not taken:
            raise KdError(f"{self.title}: {flag} wants a value", self.help(flag))
        return taken

    def help(self, flag: str) -> str:
        name = self.names.get(flag.replace("_", "-"))
        return f"{flag}: {self.owners[name].model_fields[name].description}" if name else ""

    @property
    def listing(self) -> str:
        names = [flag for flag, name in self.names.items() if name in self.settings.model_fields]
        return f"options: {' '.join(names)}" if names else "it takes no options of its own"


def refers(settings: type[Settings], name: str) -> str:
    """What kind of object a field refers to, see `kdkit.contract.param`; an empty string for plain data."""
    extra = settings.model_fields[name].json_schema_extra
    return str(extra.get("refers", "")) if isinstance(extra, dict) else ""


_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def _value(this: Kind, word: Any, where: str) -> Any:
    if isinstance(word, os.PathLike) and this.base is not object:
        return os.fspath(word)
    if not isinstance(word, str):
        # numbers of numpy and torch, which pydantic does not take for numbers
        return word.item() if this.base in (bool, int, float) and hasattr(word, "item") and getattr(word, "ndim", 0) == 0 else word
    if this.base is bool:
        if this.optional and word.lower() == "none":
            return None
        if word.lower() in _TRUE + _FALSE:
            return word.lower() in _TRUE
        raise KdError(f"{where} {word!r} is neither true nor false")
    if this.base in (str, object):
        return word
    try:
        return this.base(word)
    except ValueError as error:
        raise KdError(f"{where} {word!r} is not {'a whole number' if this.base is int else 'a number'}") from error
