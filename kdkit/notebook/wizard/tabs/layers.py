"""Layers: the layers of the start version with bars, and check boxes and values from which the patterns of a step's option are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import ipywidgets as widgets
from torch import nn

from kdkit.display.error import problem
from kdkit.display.table import number
from kdkit.errors import KdError
from kdkit.forms.widgets import close, write
from kdkit.measurement.macs import macs_by_module
from kdkit.notebook.parser import parse_stage
from kdkit.notebook.wizard.draft import Draft
from kdkit.notebook.wizard.figures import bar
from kdkit.notebook.wizard.layer_patterns import shortest_patterns
from kdkit.notebook.wizard.tab import Tab
from kdkit.parameters.command_line import read_value, write_values
from kdkit.parameters.settings import option
from kdkit.parameters.tokenizer import split
from kdkit.parameters.value_types import kind, object_kind

LONGEST = 200
"""Layers that are listed; more would slow the browser down."""


@dataclass(frozen=True)
class Target:
    """An option of a step that holds patterns of layers.

    Attributes:
        step: the position of the step.
        field: the option's name.
        mapping: it holds a value for each pattern.
        title: what a reader sees.
    """

    step: int
    field: str
    mapping: bool
    title: str


class LayersTab(Tab):
    """The layers of the version that the pipeline starts from."""

    title = "Layers"

    def build(self) -> None:
        style = {"description_width": "5em"}
        self.about = widgets.HTML()
        self.target = widgets.Dropdown(description="write to", style=style, layout={"width": "32em"})
        self.apply = self.button("Write to the step", "put the chosen layers into that option of the step", self._apply, "primary")
        self.every = self.button("Choose all", "check every layer", lambda: self._check(True))
        self.none = self.button("Choose none", "uncheck every layer", lambda: self._check(False))
        self.measure = self.button(
            "Measure sensitivity", "disturb one layer after another and measure the quality; takes a pass over the evaluation data each", self._measure
        )
        self.stop = self.button("Stop", "stop within a second", self.controller.cancel)
        self.table = widgets.VBox()
        self.table.add_class("kdkit-layers")
        self.rows: dict[str, Row] = {}
        self._targets: list[Target] = []
        self._costs: Mapping[str, float] = {}
        self._shown: Any = None
        self.target.observe(self._changed, "value")
        buttons = widgets.HBox([self.apply, self.every, self.none, self.measure, self.stop], layout={"flex_flow": "row wrap"})
        self.box.children = [self.about, self.target, buttons, self.table]

    # what is written

    @property
    def chosen(self) -> Target | None:
        """The option that the layers are for."""
        return None if self.target.index is None or not self._targets else self._targets[self.target.index]

    def written(self) -> Draft | None:
        """The draft with the chosen layers in the option; None if there is no such option.

        Raises:
            KdError: a value is of the wrong type.
        """
        target = self.chosen
        if target is None:
            return None
        draft = self.controller.draft
        parsed = parse_stage(split(draft.steps[target.step]))
        values = {**parsed.values, target.field: self._value(target)}
        if not values[target.field]:
            # the default: all layers, or none to skip
            del values[target.field]
        return draft.with_step(" ".join([*parsed.title.split(), *write_values(parsed.target, values)]), target.step)

    def _value(self, target: Target) -> Any:
        names = list(self.rows)
        if not target.mapping:
            return shortest_patterns(names, [name for name, row in self.rows.items() if row.box_checked])
        this = kind(parse_stage(split(self.controller.draft.steps[target.step])).target, target.field)
        texts = {name: row.value.value.strip() for name, row in self.rows.items() if row.value.value.strip()}
        found: dict[str, Any] = {}
        for text in dict.fromkeys(texts.values()):
            value = read_value(this, text, f"{option(target.field)} ")
            found |= dict.fromkeys(shortest_patterns(names, [name for name, each in texts.items() if each == text]), value)
        return found

    @property
    def lines(self) -> str:
        if self.controller.session is None:
            return ""
        try:
            draft = self.written()
        except KdError:
            draft = None
        return f"%kd layers {self.controller.draft.start}".rstrip() if draft is None else draft.cell

    def _apply(self) -> None:
        draft, target = self.written(), self.chosen
        if draft is None or target is None:
            raise KdError("no step takes layers", "add one in Build, such as prune channels or quantize static")
        self.controller.redraft(draft, f"step {target.step + 1}: {draft.steps[target.step]}")

    def _check(self, chosen: bool) -> None:
        for row in self.rows.values():
            row.check.value = chosen

    def _changed(self, change: Any = None) -> None:
        target = self.chosen
        for row in self.rows.values():
            row.show_value(target is not None and target.mapping)
        self.controller.view.show_lines()

    # sensitivity

    def _measure(self) -> None:
        self.controller.do("sensitivity", f"%kd sensitivity {self.controller.draft.start}".rstrip(), on_done=self._measured)

    def _measured(self, made: Any, error: BaseException | None) -> None:
        if error is None:
            self._costs = {effect.name: max(effect.cost if effect.cost is not None else 1 - effect.agreement, 0.0) for effect in made.effects}
            self._shown = None

    # display

    def refresh(self) -> None:
        session = self.controller.session
        self._offer_targets()
        if session is None:
            write(self.about, "<p>There is no session yet: choose a model in <b>Start</b>.</p>")
            return
        try:
            version = session.version(self.controller.draft.start or None)
            model = session.history.model_of(version)
        except KdError as error:
            self._shown = None
            write(self.about, problem(error, "The pipeline has no start version"))
            return
        state = (id(version), id(session.objects), id(self._costs))
        if state != self._shown:
            # MACs can be counted once there is data
            self._shown = state
            self._list(version.name, model, session.objects.example())
        self._changed()

    def _list(self, name: str, model: nn.Module, example: Any) -> None:
        layers = {name: layer for name, layer in model.named_modules() if name and any(weight.dim() > 1 for weight in layer.parameters(recurse=False))}
        try:
            macs = macs_by_module(model, example[:1]) if example is not None else {}
        except Exception:
            # a model may refuse a batch of one; its layers are listed all the same
            macs = {}
        counts = {name: sum(weight.numel() for weight in layer.parameters(recurse=False)) for name, layer in layers.items()}
        if list(self.rows) != list(layers)[:LONGEST]:
            for row in self.rows.values():
                close(row.box)
            self.rows = {each: Row(each, self._changed) for each in list(layers)[:LONGEST]}
            self.table.children = [row.box for row in self.rows.values()]
        largest = [max(found.values(), default=0) or 1 for found in (counts, macs, self._costs)]
        largest[1] = max((macs.get(each, 0) for each in layers), default=0) or 1
        for each, row in self.rows.items():
            cells = [("parameters", counts[each], largest[0]), ("MACs", macs.get(each), largest[1]), ("sensitivity", self._costs.get(each), largest[2])]
            row.show(type(layers[each]).__name__, cells)
        more = f"; the first {LONGEST} of {len(layers)}" if len(layers) > LONGEST else ""
        write(
            self.about, f"<p>The layers of <b>{escape(name)}</b> that have weights{more}. Check layers, or give them values, and write them to an option of a step.</p>"
        )

    def _offer_targets(self) -> None:
        self._targets = [target for at, step in enumerate(self.controller.draft.steps) if "\n" not in step for target in _targets(at, step)]
        titles = [target.title for target in self._targets] or ["no step takes layers yet"]
        if self.target.options != tuple(titles):
            before = self.target.value
            self.target.options = titles
            self.target.index = titles.index(before) if before in titles else 0
        self.apply.disabled = not self._targets
        self.stop.button_style = "danger" if self.controller.busy else ""

    def busy(self, busy: bool) -> None:
        self.stop.button_style = "danger" if busy else ""


def _targets(at: int, step: str) -> Iterable[Target]:
    """The options of a step that hold patterns of layers."""
    try:
        stage = parse_stage(split(step)).target
    except KdError:
        return
    for field in stage.model_fields:
        if object_kind(stage, field) == "layers":
            title = f"step {at + 1}, {' '.join(step.split()[:2])}: {field.replace('_', ' ')}"
            yield Target(at, field, kind(stage, field).mapping, title)


class Row:
    """One layer: a check box, bars, and a field for a value of its own."""

    def __init__(self, name: str, changed: Any):
        self.check = widgets.Checkbox(description=name, indent=False, layout={"width": "18em"})
        self.value = widgets.Text(description=f"value of {name}", style={"description_width": "0px"}, layout={"width": "7em", "display": "none"})
        self.value.tooltip = f"value of {name}"
        self.text = widgets.HTML(layout={"flex": "1 1 24em"})
        self.box = widgets.HBox([self.check, self.value, self.text], layout={"flex_flow": "row wrap", "align_items": "center"})
        self.check.observe(changed, "value")
        self.value.observe(changed, "value")

    @property
    def box_checked(self) -> bool:
        """Whether the layer is chosen."""
        return bool(self.check.value)

    def show_value(self, shown: bool) -> None:
        """Show the field for a value in place of the check box's meaning."""
        self.value.layout.display = None if shown else "none"

    def show(self, layer: str, cells: Iterable[tuple[str, float | None, float]]) -> None:
        """Show the class and the figures, each with a bar relative to the largest of all layers."""
        bars = [f'<span class="kdkit-cell">{bar(value / most)} {number(value)} {name}</span>' for name, value, most in cells if value is not None]
        write(self.text, f'<small class="kdkit-kind">{escape(layer)}</small> {"".join(bars)}')
