"""A form: a class's fields as controls, and the options of the `%kd` line that says the same.

Nothing is listed here: controls, help, bounds, choices and order come from the fields, so a stranger's stage has its form for free.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from kdkit.contract import Settings, Stage
from kdkit.errors import KdError
from kdkit.lines import kind, option, refers, write_values
from kdkit.notebook.help import bounds, is_advanced, unit
from kdkit.notebook.wizard.draft import named
from kdkit.notebook.wizard.editors import OTHER, Editor, Named, Plain, editor
from kdkit.notebook.wizard.pane import close
from kdkit.notebook.wizard.snippets import problem
from kdkit.patterns import match
from kdkit.plugins import manager

if TYPE_CHECKING:
    from torch import nn

    from kdkit.notebook.verbs import Verb

Offers = Callable[[type[Settings], str], Sequence[Any]]
"""(class, field name) -> what may be chosen where the field names something."""

_SHOWN = 6
"""Layers that a preview names."""


class Form:
    """The fields of a class as controls.

    Args:
        settings: the class.
        offers: what may be chosen.
        model: gives the model whose layers a pattern is tried on; None while there is none.
        fields: which fields, in this order; all when not said.
        values: what differs from the defaults.

    Attributes:
        box: the widget.
        problem: what is wrong with what the controls say; None when nothing is.
    """

    def __init__(
        self,
        settings: type[Settings],
        offers: Offers = lambda settings, name: (),
        model: Callable[[], nn.Module | None] = lambda: None,
        fields: Iterable[str] | None = None,
        values: Mapping[str, Any] | None = None,
    ):
        self.settings = settings
        self.problem: KdError | None = None
        self._offers, self._model = offers, model
        self._heard: list[Callable[[], None]] = []
        self._editors: dict[str, Editor] = {}
        self._previews: dict[str, Any] = {}
        self._message = widgets.HTML()
        self._filling = True
        names = list(settings.model_fields if fields is None else fields)
        rare = [name for name in names if is_advanced(settings, name)]
        self._unseen = rare
        self._more = widgets.ToggleButton(description="More options", tooltip="show the options that are seldom needed", layout={"display": None if rare else "none"})
        self._more.observe(self._unfold, "value")
        self._rare = widgets.VBox(layout={"display": "none"})
        self.box = widgets.VBox([*(self._row(name) for name in names if name not in rare), self._more, self._rare, self._message])
        self.fill(values or {})

    # what it says

    def values(self) -> dict[str, Any]:
        """What differs from the defaults, by field, in declared order."""
        return {name: value for name, each in self._editors.items() if self._says(name, value := each.value)}

    def _says(self, name: str, value: Any) -> bool:
        field = self.settings.model_fields[name]
        return value not in (None, "", ()) if field.is_required() else value != field.default

    def options(self) -> list[str]:
        """The words of a line that say it."""
        return write_values(self.settings, self.values())

    def build(self, title: str) -> Settings:
        """An instance of the class, with names in place of what is to be looked up.

        Raises:
            KdError: a value is out of bounds, missing, or none of the field's type.
        """
        return self.settings.build(title, {name: named(value) for name, value in self.values().items()})

    def fill(self, values: Mapping[str, Any]) -> None:
        """Show these values, and the defaults of all other fields."""
        self._filling = True
        if any(name in self._unseen for name in values):
            self._more.value = True
        for name, each in self._editors.items():
            each.value = values[name] if name in values else self._default(name, each)
        self._filling = False
        self._changed()

    def _default(self, name: str, each: Editor) -> Any:
        """What a field shows that nothing was said of; one that must be filled in shows something empty."""
        field, this = self.settings.model_fields[name], kind(self.settings, name)
        if not field.is_required():
            return field.default
        if isinstance(each, Named) or this.choices:
            entry = each.first.options[0][1]
            return "" if entry == OTHER else entry
        return () if this.many else this.base()

    def refresh(self) -> None:
        """Offer what the notebook and the session hold by now."""
        self._filling = True
        for name, each in self._editors.items():
            each.offer(self._offers(self.settings, name))
        self._filling = False
        self._changed()

    def on_change(self, heard: Callable[[], None]) -> None:
        """Call `heard` after each change."""
        self._heard.append(heard)

    def control(self, name: str) -> Editor:
        """The editor of a field."""
        if name in self._unseen:
            self._more.value = True
        return self._editors[name]

    # how it is built

    def _row(self, name: str) -> Any:
        made = self._editors[name] = self._editor(name)
        made.observe(self._changed)
        hint = widgets.HTML(f'<span style="opacity:.85">{escape(_hint(self.settings, name))}</span>', layout={"flex": "1 1 16em", "margin": "2px 2px 2px 10px"})
        row = widgets.HBox([made.widget, hint], layout={"flex_flow": "row wrap", "align_items": "baseline"})
        if refers(self.settings, name) != "layers":
            return row
        self._previews[name] = widgets.HTML()
        return widgets.VBox([row, self._previews[name]])

    def _editor(self, name: str) -> Editor:
        own = None
        try:
            own = _widget_of_a_plugin(self.settings, name)
            if own is not None:
                made = Plain(own)
                made.value = self._default(name, made)
                return made
        except Exception as error:
            warnings.warn(f"kdkit_widget failed for {_title(self.settings)} {option(name)}: {type(error).__name__}: {error}", stacklevel=2)
            if own is not None:
                close(own)
        return editor(self.settings, name, _label(self.settings, name), _hint(self.settings, name), self._offers(self.settings, name))

    def _unfold(self, change: Any) -> None:
        """Show the options that are seldom needed; they are made when first asked for, which most forms never are."""
        unseen, self._unseen = self._unseen, []
        if unseen:
            before, self._filling = self._filling, True
            self._rare.children = [self._row(name) for name in unseen]
            for name in unseen:
                self._editors[name].value = self._default(name, self._editors[name])
            self._filling = before
        self._rare.layout.display = None if self._more.value else "none"

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
        for heard in self._heard:
            heard()

    def _layers(self, said: str | tuple[str, ...]) -> str:
        """The modules that patterns mean."""
        model, patterns = self._model(), (said,) if isinstance(said, str) and said else said
        if not patterns or model is None:
            return ""
        try:
            found = list(match(model, map(str, patterns)))
        except KdError as error:
            return problem(error)
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return f"<small>{len(found)} modules: {escape(', '.join(found[:_SHOWN]))}{more}</small>"


def line_of(verb: type[Verb], values: Mapping[str, Any]) -> str:
    """The `%kd` line of a verb, what may stand by position without its option.

    >>> from kdkit.notebook.verbs import Save
    >>> line_of(Save, {"path": "small/", "version": "@slim"})
    '%kd save small/ @slim'
    """
    words, rest = ["%kd", verb.word()], dict(values)
    for name in verb.places:
        flag, *said = write_values(verb, {name: rest[name]}) if name in rest else [""]
        if flag != option(name) or not said:
            break
        words += said
        del rest[name]
    return " ".join([*words, *write_values(verb, rest)])


def _title(settings: type[Settings]) -> str:
    return settings.id.replace(".", " ", 1) if issubclass(settings, Stage) else settings.__name__.lower()


def _label(settings: type[Settings], name: str) -> str:
    words = name.rstrip("_").replace("_", " ")
    return f"{words} ({said})" if (said := unit(settings, name)) else words


def _hint(settings: type[Settings], name: str) -> str:
    limits = bounds(settings, name)
    return f"{settings.model_fields[name].description}{f' ({limits})' if limits else ''}"


def _widget_of_a_plugin(settings: type[Settings], name: str) -> Any:
    """A control that a plugin brings for a stage's parameter.

    Raises:
        Exception: the plugin failed, or what it gave is no control.
    """
    if not issubclass(settings, Stage):
        return None
    field = settings.model_fields[name]
    default = None if field.is_required() else field.default
    made = manager().hook.kdkit_widget(stage=settings, name=name, value=default)
    if made is not None and not (isinstance(made, widgets.Widget) and made.has_trait("value")):
        raise TypeError(f"{type(made).__name__} is no widget with a value")
    return made
