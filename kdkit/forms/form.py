"""A form: the fields of a class as controls, and the options of the equivalent `%kd` line.

Controls, help, bounds, choices and order come from the fields, so every stage of a plugin has a form automatically.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from kdkit.display.error import problem
from kdkit.errors import KdError, describe_exception
from kdkit.forms.controls import Editor, Plain, editor
from kdkit.forms.widgets import close
from kdkit.models.layer_selection import select_layers
from kdkit.parameters.command_line import write_values
from kdkit.parameters.description import bounds, is_advanced, is_main, unit
from kdkit.parameters.mapping import differ
from kdkit.parameters.settings import Settings, option
from kdkit.parameters.tokenizer import named
from kdkit.parameters.value_types import object_kind
from kdkit.plugins.manager import manager
from kdkit.stages.stage import Stage

if TYPE_CHECKING:
    from torch import nn


Suggestions = Callable[[type[Settings], str], Sequence[Any]]
"""(class, field name) -> suggested values of a field that names an object."""

_SHOWN = 6
"""Number of layers that a preview lists."""


class Form:
    """The fields of a class as controls.

    Args:
        settings: the class.
        suggestions: the suggested values.
        model: returns the model whose layers the patterns match, None if there is none.
        fields: the fields to show, in this order; default: all.
        values: values that differ from the defaults.
        front: the fields that are not folded; default: the main ones, or, where none is declared, all that are not advanced.
        folded: what the button that unfolds the others says.

    Attributes:
        box: the widget.
        more: the button that unfolds the other fields.
        problem: the error in the values, None if they are valid.
    """

    def __init__(
        self,
        settings: type[Settings],
        suggestions: Suggestions = lambda settings, name: (),
        model: Callable[[], nn.Module | None] = lambda: None,
        fields: Iterable[str] | None = None,
        values: Mapping[str, Any] | None = None,
        front: Iterable[str] | None = None,
        folded: str = "All options",
    ):
        self.settings = settings
        self.problem: KdError | None = None
        self._suggestions, self._model = suggestions, model
        self._callbacks: list[Callable[[], None]] = []
        self._editors: dict[str, Editor] = {}
        self._previews: dict[str, Any] = {}
        self._message = widgets.HTML()
        self._filling = True
        self._names = names = list(settings.model_fields if fields is None else fields)
        shown = _front(settings, names) if front is None else [name for name in names if name in front]
        self._unseen = rest = [name for name in names if name not in shown]
        layout = {"width": "auto", "align_self": "flex-start", "display": None if rest else "none"}
        self.more = widgets.ToggleButton(description=folded, tooltip="show the other options", layout=layout)
        self.more.observe(self._unfold, "value")
        self._rest = widgets.VBox(layout={"display": "none"})
        self.box = widgets.VBox([*(self._row(name) for name in shown), self.more, self._rest, self._message])
        self.fill(values or {})

    # values

    def values(self) -> dict[str, Any]:
        """The values that differ from the defaults, by field, in declared order."""
        return {name: value for name in self._names if name in self._editors and self._differs(name, value := self._editors[name].value)}

    def _differs(self, name: str, value: Any) -> bool:
        field = self.settings.model_fields[name]
        return value not in (None, "", (), {}) if field.is_required() else differ(value, field.default)

    def options(self) -> list[str]:
        """The options of the equivalent line."""
        return write_values(self.settings, self.values())

    def build(self, title: str) -> Settings:
        """An instance of the class; an object is represented by its name or expression.

        Raises:
            KdError: a value is missing, out of bounds, or of the wrong type.
        """
        return self.settings.build(title, {name: named(value) for name, value in self.values().items()})

    def fill(self, values: Mapping[str, Any]) -> None:
        """Set these values, and the defaults of all other fields."""
        self._filling = True
        if any(name in self._unseen for name in values):
            self.more.value = True
        for name, each in self._editors.items():
            each.value = values.get(name, each.default)
        self._filling = False
        self._changed()

    def refresh(self) -> None:
        """Update the suggestions from the notebook and the session."""
        self._filling = True
        for name, each in self._editors.items():
            each.suggest(self._suggestions(self.settings, name))
        self._filling = False
        self._changed()

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each change."""
        self._callbacks.append(callback)

    def focus(self) -> None:
        """Move the focus to the first control, or to the button that unfolds the others."""
        first = next(iter(self._editors.values()), None)
        (self.more if first is None else first.first).focus()

    def control(self, name: str) -> Editor:
        """The editor of a field."""
        if name in self._unseen:
            self.more.value = True
        return self._editors[name]

    # widgets

    def _row(self, name: str) -> Any:
        made = self._editors[name] = self._editor(name)
        made.observe(self._changed)
        hint = widgets.HTML(f'<span style="opacity:.85">{escape(_hint(self.settings, name))}</span>', layout={"flex": "1 1 16em", "margin": "2px 2px 2px 10px"})
        row = widgets.HBox([made.widget, hint], layout={"flex_flow": "row wrap", "align_items": "baseline"})
        if object_kind(self.settings, name) != "layers":
            return row
        self._previews[name] = widgets.HTML()
        return widgets.VBox([row, self._previews[name]])

    def _editor(self, name: str) -> Editor:
        own = _widget_of_a_plugin(self.settings, name)
        try:
            if own is not None:
                field = self.settings.model_fields[name]
                made = Plain(own, own.value if field.is_required() else field.default)
                made.value = made.default
                return made
        except Exception as error:
            _warn_of_widget(self.settings, name, describe_exception(error))
            if own is not None:
                close(own)
        return editor(self.settings, name, _label(self.settings, name), _hint(self.settings, name), self._suggestions(self.settings, name))

    def _unfold(self, change: Any) -> None:
        """Show the other options; their controls are created at the first time, as most forms never need them."""
        unseen, self._unseen = self._unseen, []
        if unseen:
            before, self._filling = self._filling, True
            self._rest.children = [self._row(name) for name in unseen]
            for name in unseen:
                self._editors[name].value = self._editors[name].default
            self._filling = before
        self._rest.layout.display = None if self.more.value else "none"

    def _changed(self, change: Any = None) -> None:
        if self._filling:
            return
        self.problem = None
        try:
            self.build(_title(self.settings))
        except KdError as error:
            self.problem = error
        self._message.value = "" if self.problem is None else problem(self.problem)
        for name, preview in self._previews.items():
            preview.value = self._layers(self._editors[name].value)
        for callback in self._callbacks:
            callback()

    def _layers(self, value: str | tuple[str, ...] | dict[str, Any]) -> str:
        """The modules that the patterns match."""
        model, patterns = self._model(), (value,) if isinstance(value, str) and value else value
        if not patterns or model is None:
            return ""
        try:
            found = list(select_layers(model, map(str, patterns)))
        except KdError as error:
            return problem(error)
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return f"<small>{len(found)} modules: {escape(', '.join(found[:_SHOWN]))}{more}</small>"


def _front(settings: type[Settings], names: Sequence[str]) -> list[str]:
    """The fields that are shown without unfolding: the main and the required ones, or all that are not advanced."""
    main = [name for name in names if is_main(settings, name)]
    if not main:
        return [name for name in names if not is_advanced(settings, name)]
    return [name for name in names if name in main or settings.model_fields[name].is_required()]


def _title(settings: type[Settings]) -> str:
    return settings.id.replace(".", " ", 1) if issubclass(settings, Stage) else settings.__name__.lower()


def _label(settings: type[Settings], name: str) -> str:
    words = name.rstrip("_").replace("_", " ")
    return f"{words} ({measured_in})" if (measured_in := unit(settings, name)) else words


def _hint(settings: type[Settings], name: str) -> str:
    limits = bounds(settings, name)
    return f"{settings.model_fields[name].description}{f' ({limits})' if limits else ''}"


def _widget_of_a_plugin(settings: type[Settings], name: str) -> Any:
    """The control that a plugin provides for a stage's parameter, None if there is none; a plugin that fails is reported and skipped."""
    if not issubclass(settings, Stage):
        return None
    field = settings.model_fields[name]
    default = None if field.is_required() else field.default
    try:
        return manager().first("kdkit_widget", partial(_warn_of_widget, settings, name), stage=settings, name=name, value=default)
    except KdError as error:
        _warn_of_widget(settings, name, error.message)
        return None


def _warn_of_widget(settings: type[Settings], name: str, what: str) -> None:
    warnings.warn(f"kdkit_widget failed for {_title(settings)} {option(name)}: {what}", stacklevel=2)
