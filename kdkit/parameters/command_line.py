"""Lines: a class's fields as `--options`, both ways.

`split` cuts a line into words, `read_options` turns words into values for a class's fields, `write_options` turns an
instance back into words. A line written is read back as the same instance, whatever its strings hold: a text with line breaks or other
control characters is written as a Python literal in braces, such as `{'one\\ntwo'}`, so that it stays on its line.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdkit.errors import KdError, did_you_mean, printable
from kdkit.parameters.mapping import read_entry, write_entry
from kdkit.parameters.number_text import read_number
from kdkit.parameters.settings import option
from kdkit.parameters.tokenizer import Reference, read_literal
from kdkit.parameters.value_text import write_value
from kdkit.parameters.value_types import Kind, kind, object_kind

if TYPE_CHECKING:
    from kdkit.parameters.settings import Settings


def write_options(settings: Settings) -> list[str]:
    """Write the values that differ from the defaults as words of a line, quoted where necessary."""
    return write_values(type(settings), settings.changed())


def write_values(settings: type[Settings], values: Mapping[str, Any]) -> list[str]:
    """Write values of a class's fields as words of a line, quoted where necessary; a `Reference` is written as its expression.

    >>> from kdkit.parameters.settings import Settings, param
    >>> class Sample(Settings):
    ...     rate: float = param(0.5, "a number")
    ...     teacher: str = param("", "a model", names="model")
    >>> write_values(Sample, {"rate": 0.1, "teacher": Reference("nets['big one']")})
    ['--rate', '0.1', '--teacher', "{nets['big one']}"]
    """
    return [word for name, value in values.items() for word in _write(option(name), value, kind(settings, name))]


def _write(flag: str, value: Any, this: Kind) -> list[str]:
    if this.is_flag and value is None:
        return [f"{flag}=none"]
    if value is None or value is False or value == () or value == {}:
        return ["--no-" + flag[2:]]
    if value is True:
        return [flag]
    if isinstance(value, tuple | Mapping):
        items = write_entries(value) if isinstance(value, Mapping) else value
        return [f"{flag}={_word(item)}" for item in items] if any(str(item)[:1] in ("-", "") for item in items) else [flag, *map(_word, items)]
    return [f"{flag}={_word(value)}"] if str(value).startswith("-") else [flag, _word(value)]


def write_entries(value: Mapping[Any, Any]) -> list[str | Reference]:
    """The items of a mapping as `name=value` words, unquoted; a `Reference` stays.

    >>> write_entries({"encoder.*": 4, "head": True})
    ['encoder.*=4', 'head=true']
    """
    return [name if isinstance(name, Reference) else write_entry(name, write_value(item)) for name, item in value.items()]


def _word(value: Any) -> str:
    if isinstance(value, Reference):
        return str(value)
    text = write_value(value)
    return shlex.quote(text) if printable(text) == text else str(Reference(repr(text)))


def read_options(
    settings: type[Settings],
    words: Sequence[Any],
    title: str,
    resolve: Callable[[str, Any], Any] | None = None,
    beside: Sequence[type[Settings]] = (),
    places: Sequence[str] = (),
) -> dict[str, Any]:
    """Parse words into values for the fields of `settings`.

    Args:
        settings: the class whose fields are the options.
        words: the words after the command, strings and references.
        title: the command, for messages.
        resolve: (field name, word) -> value, for words that name objects; without it, an expression is an error.
        beside: other classes whose options are allowed on the same line; a field of `settings` takes precedence.
        places: fields that are allowed by position, in order; a tuple takes all remaining words.

    A field with `names="others"` receives a dict of the options that none of the classes declares.

    Raises:
        KdError: an unknown option, a missing value, or a value of the wrong type.
    """
    line = _Line(settings, beside, title, resolve)
    rest, free = list(words), list(places)
    while rest:
        word = rest.pop(0)
        if line.is_option(word):
            line.read(word, rest)
        elif free:
            name = free[0] if line.kind(free[0]).several else free.pop(0)
            line.put(name, [word], name.rstrip("_").upper())
        else:
            raise KdError(f"{title}: {str(word)!r} is not an option", "options look like --name value", line.listing)
    return line.values


class _Line:
    """The state of parsing one line: the classes that share it, and the values so far."""

    def __init__(self, settings: type[Settings], beside: Sequence[type[Settings]], title: str, resolve: Callable[[str, Any], Any] | None):
        self.title, self.settings, self._resolve = title, settings, resolve
        self.owners = {name: owner for owner in reversed((settings, *beside)) for name in owner.model_fields}
        self.others = next((name for name in settings.model_fields if object_kind(settings, name) == "others"), "")
        self.names = {option(name): name for name in self.owners if name != self.others}
        self.values: dict[str, Any] = {}

    def kind(self, name: str) -> Kind:
        return kind(self.owners[name], name)

    def resolve(self, name: str, word: Any) -> Any:
        """The value of a word."""
        if self._resolve is not None:
            return self._resolve(name, word)
        if isinstance(word, Reference):
            if (text := read_literal(word)) is not None:
                return text
            raise KdError(
                f"{self.title}: {option(name)} {word}: objects can be named like this on a notebook's %kd line only",
                "give the object to the session by a name: session.set(name=object), and write the name",
            )
        return word

    def is_option(self, word: Any) -> bool:
        flag = word if isinstance(word, str) else getattr(word, "flag", "")
        return flag.startswith("--") or flag.partition("=")[0] in self.names

    def read(self, word: Any, rest: list[Any]) -> None:
        """Parse the option `word` and take its values from `rest`."""
        flag, joined, tail = (word.flag, "=", Reference(word.source)) if isinstance(word, Reference) else word.partition("=")
        name, off = self.field(flag.replace("_", "-"))
        if not name:
            value = None if off else self.resolve(self.others, tail if joined else self.taken(flag, rest)[0])
            self.values.setdefault(self.others, {})[flag.removeprefix("--no-" if off else "--").replace("-", "_")] = value
            return
        this = self.kind(name)
        if off:
            if joined:
                raise KdError(f"{self.title}: {flag} takes no value")
            self.values[name] = False if this.is_flag else () if this.many else {} if this.mapping else None
        elif this.is_flag and not joined:
            self.values[name] = True
        else:
            self.put(name, [tail] if joined else self.taken(flag, rest, this.several), flag)

    def put(self, name: str, words: list[Any], flag: str) -> None:
        """Parse the values of a field and store them."""
        this = self.kind(name)
        if this.mapping:
            for word in words:
                items = read_entries(this, self.resolve(name, word) if isinstance(word, Reference) else word, f"{self.title}: {flag} ")
                self.values[name] = {**self.values.get(name, {}), **{key if isinstance(key, Reference) else self.resolve(name, key): item for key, item in items.items()}}
            return
        made = [read_value(this, self.resolve(name, word), f"{self.title}: {flag} ") for word in words]
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
            if this.base is bool or this.optional or this.several or self.can_be_absent(self.names[positive]):
                return self.names[positive], True
            raise KdError(f"{self.title}: {positive} can't be turned off", self.help(positive))
        # --teacher2 is another teacher, --trian is a slip
        slip = difflib.get_close_matches(flag, self.names, n=1, cutoff=0.8) and not any(flag.startswith(known) for known in self.names)
        if self.others and flag[2:].replace("-", "_").isidentifier() and not slip:
            return "", flag.startswith("--no-")
        removed = self.settings.hints_on(flag[2:].replace("-", "_"))
        raise KdError(f"{self.title} has no option {flag}", *(removed or (did_you_mean(flag, self.names), self.listing)))

    def can_be_absent(self, name: str) -> bool:
        """Whether an option that holds an object may be None."""
        field = self.owners[name].model_fields[name]
        return self.kind(name).base is object and not field.is_required() and field.default is None

    def taken(self, flag: str, rest: list[Any], many: bool = False) -> list[Any]:
        """The words after an option that are its value, taken from `rest`."""
        taken: list[Any] = []
        while rest and not self.is_option(rest[0]) and (many or not taken):
            taken.append(rest.pop(0))
        if not taken:
            raise KdError(f"{self.title}: {flag} needs a value", self.help(flag))
        return taken

    def help(self, flag: str) -> str:
        name = self.names.get(flag.replace("_", "-"))
        return f"{flag}: {self.owners[name].model_fields[name].description}" if name else ""

    @property
    def listing(self) -> str:
        names = [flag for flag, name in self.names.items() if name in self.settings.model_fields]
        return f"options: {' '.join(names)}" if names else "it takes no options of its own"


def read_entries(this: Kind, word: Any, where: str) -> dict[Any, Any]:
    """The items of a mapping in a word: one as `name=value`, or those of a dict; a `Reference` stays, as a key without value.

    Raises:
        KdError: the word is not NAME=VALUE; `where` begins the message.
    """
    if isinstance(word, Reference):
        return {word: None}
    if isinstance(word, Mapping):
        return dict(word)
    name, value = read_entry(word) if isinstance(word, str) else ("", None)
    if not name or value is None:
        allowed = " | ".join(map(str, this.choices)) or "VALUE"
        raise KdError(f"{where}{word!r} is not NAME=VALUE", f"write {where.split()[-1]} {name or 'NAME'}={allowed}; separate several with spaces")
    return {name: read_value(this, value, f"{where}{name}=")}


_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def read_value(this: Kind, word: Any, where: str) -> Any:
    """Parse one word as a value of a field's type. Objects other than strings are returned as they are; scalars of numpy and torch as Python numbers.

    Raises:
        KdError: the word is no value of that type; `where` begins the message.
    """
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
        raise KdError(f"{where}{word!r} is neither true nor false")
    if this.base in (str, object) or word in this.words:
        return word
    try:
        return read_number(word, this.base, this.unit, this.share)
    except ValueError as error:
        allowed = f"values: {', '.join(map(str, this.choices))}" if this.choices else ""
        numbers = "a whole number" if this.base is int else "a number"
        reason = str(error)
        problem = f"neither {numbers} nor {' or '.join(this.words)}" if this.words else f"not {numbers}" if reason.startswith("not a ") and ":" not in reason else reason
        raise KdError(f"{where}{word!r} is {problem}", allowed) from error
