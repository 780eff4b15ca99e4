"""Editors: controls for one value each. They use only ipywidgets that work with the keyboard and with screen readers.

`editor` selects one by the type of a field. The value of an editor is what a `%kd` line would contain: a plain value, a tuple, None,
or a `Reference` for `{an expression}`. A field for text or numbers that is empty has the default, which its placeholder shows.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ipywidgets as widgets

from kdkit.errors import KdError
from kdkit.forms.slider import slider_of
from kdkit.parameters.command_line import read_value, write_entries
from kdkit.parameters.description import is_main
from kdkit.parameters.mapping import differ, read_entry
from kdkit.parameters.settings import Settings
from kdkit.parameters.tokenizer import Reference, split
from kdkit.parameters.value_text import write_value
from kdkit.parameters.value_types import Kind, kind, object_kind

WIDE, NARROW = "30em", "20em"
LABEL = {"description_width": "13em"}


class Editor:
    """The editor of one value.

    Attributes:
        widget: the widget to display.
        first: the control that gets the focus.
        default: the value as long as nothing is entered.
    """

    widget: Any
    first: Any
    default: Any

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

    def __init__(self, widget: Any, default: Any):
        self.widget = self.first = widget
        self.default = default


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


class Typed(Editor):
    """A text field; an empty one has the default, which its placeholder shows.

    Args:
        this: the kind of the value.
        label: of the field.
        hint: its help.
        default: the value of an empty field.
        example: the placeholder where the default is empty.
    """

    def __init__(self, this: Kind, label: str, hint: str, default: Any, example: str):
        self._kind, self.default = this, default
        shown = self.written(default) if default not in (None, "", (), {}) else example
        self.widget = self.first = self._field(description=label, tooltip=hint, placeholder=shown, style=LABEL, layout={"width": WIDE})

    def _field(self, **about: Any) -> Any:
        return widgets.Text(**about)

    @property
    def value(self) -> Any:
        """The value; a text that is not of the right type stays a text, so that the form can report it."""
        text = self.first.value
        word, special = text.strip(), self.specials()
        return self.default if not word else special[word] if word in special else self.read(text)

    @value.setter
    def value(self, value: Any) -> None:
        if not differ(value, self.default):
            self.first.value = ""
            return
        special = next((word for word, meaning in self.specials().items() if not differ(meaning, value)), None)
        text = self.written(value) if special is None else special
        self.first.value = f"'{text}'" if special is None and text.strip() in self.specials() else text

    def specials(self) -> dict[str, Any]:
        """Texts that mean a value which has no text of its own."""
        return {"none": None} if self._kind.optional else {}

    def read(self, text: str) -> Any:
        """The value of a text."""
        raise NotImplementedError

    def written(self, value: Any) -> str:
        """The text that `read` reads as the value."""
        raise NotImplementedError


class Number(Typed):
    """A number as people write them, such as 1e-3 or 50%, or one of the words that are allowed in its place."""

    def _field(self, **about: Any) -> Any:
        if self._kind.words:
            return widgets.Combobox(options=self._kind.words, **about)
        # half of a number may be out of bounds
        return widgets.Text(continuous_update=False, **about)

    def read(self, text: str) -> Any:
        with contextlib.suppress(KdError):
            return read_value(self._kind, text.strip(), "")
        return text

    def written(self, value: Any) -> str:
        return write_value(value)


class Sentence(Typed):
    """A text as it is; quotes around it are not part of it, and necessary only for a text that would mean something else."""

    def read(self, text: str) -> Any:
        if text[:1] in ("'", '"'):
            with contextlib.suppress(KdError):
                words = split(text)
                if len(words) == 1 and isinstance(words[0], str):
                    return words[0]
        return text

    def written(self, value: Any) -> str:
        text = str(value)
        return shlex.quote(text) if not text.strip() or text[:1] in ("'", '"') else text


class Words(Typed):
    """Several values in one line, as words of a `%kd` line: `layer.0 'two words'`."""

    def specials(self) -> dict[str, Any]:
        return {**super().specials(), "()": ()}

    def read(self, text: str) -> tuple[Any, ...]:
        """The words; a word of the wrong type stays a string, so that the form can report it."""
        try:
            words = split(text)
        except KdError:
            return (text,)
        return tuple(self._word(word) for word in words)

    def written(self, value: Iterable[Any]) -> str:
        return " ".join(str(each) if isinstance(each, Reference) else shlex.quote(write_value(each)) for each in value)

    def _word(self, word: Any) -> Any:
        with contextlib.suppress(ValueError, TypeError):
            return self._kind.base(word) if isinstance(word, str) else word
        return word


class Entries(Typed):
    """Names with values in one line, as words of a `%kd` line: `encoder.*=4 head=8`."""

    def specials(self) -> dict[str, Any]:
        return {**super().specials(), "{}": {}}

    def read(self, text: str) -> dict[Any, Any] | Reference:
        """The items; one without a value has None, and one whose value has another type keeps its text, so that validation names it."""
        try:
            words = split(text)
        except KdError:
            return {text: None}
        if len(words) == 1 and isinstance(words[0], Reference):
            return words[0]
        return {name: value for word in words for name, value in [(word, None) if isinstance(word, Reference) else self._entry(word)]}

    def written(self, value: Mapping[Any, Any] | Reference) -> str:
        if isinstance(value, Reference):
            return str(value)
        return " ".join(str(word) if isinstance(word, Reference) else shlex.quote(word) for word in write_entries(value))

    def _entry(self, word: str) -> tuple[str, Any]:
        name, value = read_entry(word)
        with contextlib.suppress(KdError):
            return name, None if value is None else read_value(Kind(self._kind.base, mapping=True), value, name)
        return name, value


class Named(Editor):
    """One of the suggested names, or a typed one: a name, or `{an expression}`."""

    def __init__(self, label: str, names: Sequence[str | Reference], hint: str, optional: bool, default: Any = None):
        self.none, self._always = [(NOTHING, NOTHING)] if optional else [], [default] if isinstance(default, str) else []
        self.first = widgets.Dropdown(description=label, options=self._entries(names), tooltip=hint, style=LABEL, layout={"width": WIDE})
        self.text = widgets.Text(description=f"{label}, typed", tooltip="a name, or {an expression}", style=LABEL, layout={"width": WIDE, "display": "none"})
        self.first.observe(self._shown, "value")
        self.widget = widgets.VBox([self.first, self.text])
        self._default = default
        self._shown()

    @property
    def default(self) -> Any:
        """The default; the first suggestion where one must be chosen."""
        entry = self.first.options[0][1]
        return self._default if self.none or self._always else "" if entry == OTHER else entry

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
        return [*self.none, *_named([*self._always, *names]), (OTHER, OTHER)]

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


def editor(settings: type[Settings], name: str, label: str, hint: str, names: Sequence[str | Reference] = ()) -> Editor:
    """The editor of one field, by the field's type; a main option that has a range gets a slider beside its number.

    Args:
        settings: the class of the field.
        name: of the field.
        label: the label of the control.
        hint: its help, announced by screen readers too.
        names: suggestions besides the choices that the field declares.
    """
    this, field = kind(settings, name), settings.model_fields[name]
    default, example = (None, "required") if field.is_required() else (field.default, "not set")
    if this.many:
        return Words(this, label, hint, () if field.is_required() else default, "several: a b c")
    if this.mapping:
        return Entries(this, label, hint, {} if field.is_required() else default, "name=value, several: encoder.*=4 head=8")
    if this.choices or (this.base is bool and this.optional):
        choices = [(str(choice), choice) for choice in this.choices] or [("yes", True), ("no", False)]
        options = [*([(NOTHING, NOTHING)] if this.optional else []), *choices]
        listed = widgets.Dropdown(description=label, options=options, tooltip=hint, style=LABEL, layout={"width": WIDE})
        return Choice(listed, options[0][1] if field.is_required() else default)
    if object_kind(settings, name) not in ("", "path") or names:
        return Named(label, names, hint, this.optional or (this.base is object and not field.is_required()), default)
    if this.base is bool:
        return Plain(widgets.Checkbox(indent=True, description=label, tooltip=hint, style=LABEL, layout={"width": WIDE}), bool(default))
    if this.base is str:
        return Sentence(this, label, hint, "" if field.is_required() else default, example)
    number = Number(this, label, hint, default, example)
    if is_main(settings, name) and (slider := slider_of(settings, name, number.first)) is not None:
        number.first.layout.width = NARROW
        number.widget = widgets.HBox([number.first, slider], layout={"width": WIDE, "align_items": "center"})
        number.widget.add_class("kdkit-slider")
    return number
