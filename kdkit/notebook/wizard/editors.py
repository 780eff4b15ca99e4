"""Editors: controls for one value each, of only those ipywidgets that a keyboard reaches and a screen reader names.

`editor` chooses one by what a field holds. An editor's value is what a line of `%kd` would say: a plain value, a tuple, None,
or a `Reference` where `{an expression}` is written.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ipywidgets as widgets

from kdkit.contract import Settings
from kdkit.errors import KdError
from kdkit.lines import Kind, Reference, kind, refers, split

WIDE, NARROW = "30em", "17em"
LABEL = {"description_width": "13em"}


class Editor:
    """One value and what is seen of it.

    Attributes:
        widget: to be shown.
        first: the control that takes the focus.
    """

    widget: Any
    first: Any

    @property
    def value(self) -> Any:
        """What it says now."""
        return self.first.value

    @value.setter
    def value(self, value: Any) -> None:
        self.first.value = value

    def parts(self) -> Iterable[Any]:
        """The controls whose values make up the editor's."""
        return [self.first]

    def observe(self, changed: Callable[[Any], None]) -> None:
        """Call `changed` after each change, by hand or by program."""
        for part in self.parts():
            part.observe(changed, "value")

    def offer(self, names: Sequence[str | Reference]) -> None:
        """Offer these, where the editor offers anything; what it says stays."""


class Plain(Editor):
    """A single control whose value is the value."""

    def __init__(self, widget: Any):
        self.widget = self.first = widget


class Words(Editor):
    """Several values in one line, as words of a `%kd` line: `layer.0 'two words'`."""

    def __init__(self, label: str, base: type, hint: str):
        self.base = base
        self.widget = self.first = widgets.Text(description=label, tooltip=hint, placeholder="several: a b c", style=LABEL, layout={"width": WIDE})

    @property
    def value(self) -> tuple[Any, ...]:
        """The words; one that is none of the values meant stays a text, so that the form can say so."""
        try:
            words = split(self.first.value)
        except KdError:
            return (self.first.value,)
        return tuple(self._read(word) for word in words)

    @value.setter
    def value(self, value: Iterable[Any]) -> None:
        self.first.value = " ".join(str(each) if isinstance(each, Reference) else shlex.quote(str(each)) for each in value)

    def _read(self, word: Any) -> Any:
        with contextlib.suppress(ValueError, TypeError):
            return self.base(word) if isinstance(word, str) else word
        return word


NOTHING, OTHER = "(not set)", "something else"


class Choice(Editor):
    """One of a few values, or none of them: `nothing`. An option whose value is None would be shown as blank, so its label is its value."""

    def __init__(self, label: str, options: Sequence[tuple[str, Any]], hint: str, optional: bool, nothing: Any = None):
        self.nothing = nothing
        self.none = [(NOTHING, NOTHING)] if optional else []
        self.widget = self.first = widgets.Dropdown(description=label, options=[*self.none, *options], tooltip=hint, style=LABEL, layout={"width": WIDE})

    @property
    def value(self) -> Any:
        return self.nothing if self.first.value == NOTHING else self.first.value

    @value.setter
    def value(self, value: Any) -> None:
        self.first.value = NOTHING if value == self.nothing else value


class Named(Choice):
    """A name among those offered, or something else that is written: a name, or `{an expression}`."""

    def __init__(self, label: str, names: Sequence[str | Reference], hint: str, optional: bool, nothing: Any = None):
        super().__init__(label, [*_named(names), (OTHER, OTHER)], hint, optional, nothing)
        self.text = widgets.Text(description=f"{label}, written", tooltip="a name, or {an expression}", style=LABEL, layout={"width": WIDE, "display": "none"})
        self.first.observe(self._shown, "value")
        self.widget = widgets.VBox([self.first, self.text])
        self._shown()

    def parts(self) -> Iterable[Any]:
        return [self.first, self.text]

    @property
    def value(self) -> Any:
        return read_word(self.text.value) if self.first.value == OTHER else super().value

    @value.setter
    def value(self, value: Any) -> None:
        said = NOTHING if value == self.nothing else value
        if said != OTHER and said in [each for _, each in self.first.options]:
            self.first.value = said
        else:
            self.text.value = write_word(value)
            self.first.value = OTHER

    def offer(self, names: Sequence[str | Reference]) -> None:
        said = self.value
        options = [*self.none, *_named(names), (OTHER, OTHER)]
        if list(self.first.options) != options:
            self.first.options = options
            self.value = said

    def _shown(self, change: Any = None) -> None:
        self.text.layout.display = None if self.first.value == OTHER else "none"


def _named(names: Sequence[str | Reference]) -> list[tuple[str, Any]]:
    return [(name.source if isinstance(name, Reference) else name, name) for name in dict.fromkeys(names) if name not in ("", OTHER)]


def read_word(text: str) -> Any:
    """What is written where one word is meant: a `Reference`, the text between quotes, or the text as it is.

    >>> read_word("{nets['big']}"), read_word("'{name}'"), read_word("a name with spaces")
    (Reference(source="nets['big']", flag=''), '{name}', 'a name with spaces')
    """
    with contextlib.suppress(KdError):
        words = split(text)
        if len(words) == 1 and ((isinstance(words[0], Reference) and not words[0].flag) or text[:1] in ("'", '"')):
            return words[0]
    return text


def write_word(value: Any) -> str:
    """What `read_word` reads as `value`.

    >>> [write_word(value) for value in ("big", "{big}", Reference("big"))]
    ['big', "'{big}'", '{big}']
    """
    text = "" if value is None else str(value)
    return text if read_word(text) == value or value is None else shlex.quote(text)


class Optional(Editor):
    """A value that may be left out: a check box says whether it is set."""

    def __init__(self, label: str, inner: Editor):
        self.inner = inner
        self.first = widgets.Checkbox(description=f"set {label}", value=False, indent=False, layout={"width": "auto"})
        self.widget = widgets.HBox([inner.widget, self.first])
        # whoever writes a value means it
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
    """The editor of one field, by what it holds.

    Args:
        label: what the control is called.
        hint: its help, also read out.
        names: what is offered, besides the choices that the field declares.
    """
    this = kind(settings, name)
    if this.many:
        return Optional(label, Words(label, this.base, hint)) if this.optional else Words(label, this.base, hint)
    if this.choices or (this.base is bool and this.optional):
        choices = [(str(choice), choice) for choice in this.choices] or [("yes", True), ("no", False)]
        return Choice(label, choices, hint, this.optional)
    if refers(settings, name) not in ("", "path") or names:
        field = settings.model_fields[name]
        if not field.is_required() and field.default == "":
            return Named(label, names, hint, optional=True, nothing="")
        return Named(label, names, hint, this.optional or (this.base is object and not field.is_required()))
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
