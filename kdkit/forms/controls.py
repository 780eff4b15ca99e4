"""Editors: controls for one value each. They use only ipywidgets that work with the keyboard and with screen readers.

`editor` selects one by the type of a field. The value of an editor is what a `%kd` line would contain: a plain value, a tuple, None,
or a `Reference` for `{an expression}`.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ipywidgets as widgets

from kdkit.errors import KdError
from kdkit.parameters.command_line import read_value, write_entries
from kdkit.parameters.mapping import read_entry
from kdkit.parameters.settings import Settings
from kdkit.parameters.tokenizer import Reference, split
from kdkit.parameters.value_text import write_value
from kdkit.parameters.value_types import Kind, kind, object_kind

WIDE, NARROW = "30em", "17em"
LABEL = {"description_width": "13em"}


class Editor:
    """The editor of one value.

    Attributes:
        widget: the widget to display.
        first: the control that gets the focus.
    """

    widget: Any
    first: Any

    @property
    def value(self) -> Any:
        """The current value."""
        return self.first.value

    @value.setter
    def value(self, value: Any) -> None:
        self.first.value = value

    def parts(self) -> Iterable[Any]:
        """The controls whose values make up the editor's."""
        return [self.first]

    def observe(self, changed: Callable[[Any], None]) -> None:
        """Call `changed` after each change, by the user or by code."""
        for part in self.parts():
            part.observe(changed, "value")

    def suggest(self, names: Sequence[str | Reference]) -> None:
        """Update the suggestions, if the editor has any; its value stays."""


class Plain(Editor):
    """A single control whose value is the value."""

    def __init__(self, widget: Any):
        self.widget = self.first = widget


NOTHING, OTHER = "(not set)", "something else"
"""Entries of lists: for None, as a list whose value is None would be blank, and for a value typed below."""


class Choice(Plain):
    """A list with one selected entry."""

    @property
    def value(self) -> Any:
        return None if self.first.value == NOTHING else self.first.value

    @value.setter
    def value(self, value: Any) -> None:
        self.first.value = NOTHING if value is None else value


class NumberOrWord(Editor):
    """A number, or one of the words that are allowed in its place."""

    def __init__(self, this: Kind, label: str, hint: str):
        self._kind = this
        self.widget = self.first = widgets.Combobox(
            description=label, options=this.words, tooltip=hint, placeholder=f"a number, {' or '.join(this.words)}", style=LABEL, layout={"width": WIDE}
        )

    @property
    def value(self) -> Any:
        """The value; a text that is neither stays a text, so that the form can report it."""
        with contextlib.suppress(KdError):
            return read_value(self._kind, self.first.value.strip(), "")
        return self.first.value

    @value.setter
    def value(self, value: Any) -> None:
        self.first.value = str(value)


class Words(Editor):
    """Several values in one line, as words of a `%kd` line: `layer.0 'two words'`."""

    def __init__(self, label: str, base: type, hint: str):
        self.base = base
        self.widget = self.first = widgets.Text(description=label, tooltip=hint, placeholder="several: a b c", style=LABEL, layout={"width": WIDE})

    @property
    def value(self) -> tuple[Any, ...]:
        """The words; a word of the wrong type stays a string, so that the form can report it."""
        try:
            words = split(self.first.value)
        except KdError:
            return (self.first.value,)
        return tuple(self._read(word) for word in words)

    @value.setter
    def value(self, value: Iterable[Any]) -> None:
        self.first.value = " ".join(str(each) if isinstance(each, Reference) else shlex.quote(write_value(each)) for each in value)

    def _read(self, word: Any) -> Any:
        with contextlib.suppress(ValueError, TypeError):
            return self.base(word) if isinstance(word, str) else word
        return word


class Entries(Editor):
    """Names with values in one line, as words of a `%kd` line: `encoder.*=4 head=8`."""

    def __init__(self, label: str, base: type, hint: str):
        self._kind = Kind(base, mapping=True)
        self.widget = self.first = widgets.Text(
            description=label, tooltip=hint, placeholder="name=value, several: encoder.*=4 head=8", style=LABEL, layout={"width": WIDE}
        )

    @property
    def value(self) -> dict[Any, Any] | Reference:
        """The items; one without a value has None, and one whose value has another type keeps its text, so that validation names it."""
        try:
            words = split(self.first.value)
        except KdError:
            return {self.first.value: None}
        if len(words) == 1 and isinstance(words[0], Reference):
            return words[0]
        return {name: value for word in words for name, value in [(word, None) if isinstance(word, Reference) else self._read(word)]}

    @value.setter
    def value(self, value: Any) -> None:
        self.first.value = (
            str(value) if isinstance(value, Reference) else " ".join(str(word) if isinstance(word, Reference) else shlex.quote(word) for word in write_entries(value))
        )

    def _read(self, word: str) -> tuple[str, Any]:
        name, value = read_entry(word)
        with contextlib.suppress(KdError):
            return name, None if value is None else read_value(self._kind, value, name)
        return name, value


class Named(Editor):
    """One of the suggested names, or a typed one: a name, or `{an expression}`."""

    def __init__(self, label: str, names: Sequence[str | Reference], hint: str, optional: bool, default: Any = None):
        self.none, self.default = [(NOTHING, NOTHING)] if optional else [], [default] if isinstance(default, str) else []
        self.first = widgets.Dropdown(description=label, options=self._entries(names), tooltip=hint, style=LABEL, layout={"width": WIDE})
        self.text = widgets.Text(description=f"{label}, typed", tooltip="a name, or {an expression}", style=LABEL, layout={"width": WIDE, "display": "none"})
        self.first.observe(self._shown, "value")
        self.widget = widgets.VBox([self.first, self.text])
        self._shown()

    def parts(self) -> Iterable[Any]:
        return [self.first, self.text]

    @property
    def value(self) -> Any:
        chosen = self.first.value
        if chosen == OTHER:
            return read_word(self.text.value)
        return None if chosen == NOTHING else chosen

    @value.setter
    def value(self, value: Any) -> None:
        entry = NOTHING if value is None else value
        if entry != OTHER and entry in [each for _, each in self.first.options]:
            self.first.value = entry
        else:
            self.text.value = write_word(value)
            self.first.value = OTHER

    def suggest(self, names: Sequence[str | Reference]) -> None:
        value = self.value
        options = self._entries(names)
        if list(self.first.options) != options:
            self.first.options = options
            self.value = value

    def _entries(self, names: Sequence[str | Reference]) -> list[tuple[str, Any]]:
        return [*self.none, *_named([*self.default, *names]), (OTHER, OTHER)]

    def _shown(self, change: Any = None) -> None:
        self.text.layout.display = None if self.first.value == OTHER else "none"


def _named(names: Sequence[str | Reference]) -> list[tuple[str, Any]]:
    return [(name.source if isinstance(name, Reference) else name or NOTHING, name) for name in dict.fromkeys(names) if name not in (NOTHING, OTHER)]


def read_word(text: str) -> Any:
    """The value of a typed word: a `Reference`, the text between quotes, or the text itself.

    >>> read_word("{nets['big']}"), read_word("'{name}'"), read_word("a name with spaces")
    (Reference(source="nets['big']", flag=''), '{name}', 'a name with spaces')
    """
    with contextlib.suppress(KdError):
        words = split(text)
        if len(words) == 1 and ((isinstance(words[0], Reference) and not words[0].flag) or text[:1] in ("'", '"')):
            return words[0]
    return text


def write_word(value: Any) -> str:
    """The text that `read_word` reads as `value`.

    >>> [write_word(value) for value in ("big", "{big}", Reference("big"))]
    ['big', "'{big}'", '{big}']
    """
    text = "" if value is None else str(value)
    return text if read_word(text) == value or value is None else shlex.quote(text)


class Optional(Editor):
    """An optional value with a check box for whether it is set."""

    def __init__(self, label: str, inner: Editor):
        self.inner = inner
        self.first = widgets.Checkbox(description=f"set {label}", value=False, indent=False, layout={"width": "auto"})
        self.widget = widgets.HBox([inner.widget, self.first])
        # editing the value sets it
        self.inner.observe(self._written)

    def _written(self, change: Any) -> None:
        self.first.value = True

    def parts(self) -> Iterable[Any]:
        return [self.first, *self.inner.parts()]

    @property
    def value(self) -> Any:
        return self.inner.value if self.first.value else None

    @value.setter
    def value(self, value: Any) -> None:
        if value is not None:
            self.inner.value = value
        self.first.value = value is not None


def editor(settings: type[Settings], name: str, label: str, hint: str, names: Sequence[str | Reference] = ()) -> Editor:
    """The editor of one field, by the field's type.

    Args:
        settings: the class of the field.
        name: of the field.
        label: the label of the control.
        hint: its help, announced by screen readers too.
        names: suggestions besides the choices that the field declares.
    """
    this = kind(settings, name)
    if this.many:
        return Optional(label, Words(label, this.base, hint)) if this.optional else Words(label, this.base, hint)
    if this.mapping:
        return Entries(label, this.base, hint)
    if this.choices or (this.base is bool and this.optional):
        choices = [(str(choice), choice) for choice in this.choices] or [("yes", True), ("no", False)]
        options = [*([(NOTHING, NOTHING)] if this.optional else []), *choices]
        return Choice(widgets.Dropdown(description=label, options=options, tooltip=hint, style=LABEL, layout={"width": WIDE}))
    if object_kind(settings, name) not in ("", "path") or names:
        field = settings.model_fields[name]
        return Named(label, names, hint, this.optional or (this.base is object and not field.is_required()), None if field.is_required() else field.default)
    if this.words:
        return NumberOrWord(this, label, hint)
    made = Plain(_control(this, label, hint))
    return Optional(label, made) if this.optional else made


def _control(this: Kind, label: str, hint: str) -> Any:
    about = {"description": label, "tooltip": hint, "style": LABEL}
    if this.base is bool:
        return widgets.Checkbox(indent=True, **about, layout={"width": WIDE})
    if this.base is int:
        return widgets.IntText(**about, layout={"width": WIDE})
    if this.base is float:
        return widgets.FloatText(step=None, **about, layout={"width": WIDE})
    return widgets.Text(**about, layout={"width": WIDE})
