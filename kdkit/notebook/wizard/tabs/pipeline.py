"""Pipeline: choose techniques, edit the steps, and validate and predict the pipeline before anything runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from html import escape
from typing import Any

import ipywidgets as widgets

from kdkit.display.error import problem
from kdkit.errors import KdError
from kdkit.forms.form import Form
from kdkit.forms.widgets import close, write
from kdkit.notebook.help_pages import families
from kdkit.notebook.parser import parse_stage
from kdkit.notebook.variables import suggestions
from kdkit.notebook.wizard.draft import Draft
from kdkit.notebook.wizard.html import heading
from kdkit.notebook.wizard.tab import Tab
from kdkit.notebook.wizard.validation import StepValidity, validate_draft
from kdkit.parameters.settings import describe
from kdkit.parameters.tokenizer import split
from kdkit.plugins.manager import manager
from kdkit.session.forecast import Plan
from kdkit.stages.line_options import Running
from kdkit.stages.stage import Stage

QUICK_S = 0.5
"""A forecast that takes less than this many seconds is updated with each change; others wait for the button."""


class PipelineTab(Tab):
    """The draft, and the techniques that can be added."""

    title = "Pipeline"

    def build(self) -> None:
        style, layout = {"description_width": "13em"}, {"width": "30em"}
        self.family = widgets.Dropdown(description="family", options=families(), style=style, layout=layout)
        self.technique = widgets.Dropdown(description="technique", style=style, layout=layout)
        self.about, self.candidate, self.place = widgets.HTML(), widgets.HTML(), widgets.VBox()
        self.add = self.button("Add step", "add this stage after the steps below", self._add, "primary")
        self.change = self.button("Change step", "replace the edited step with this stage", self._change, "primary")
        self.leave = self.button("Keep step", "stop editing and keep the step as it is", self._leave)
        self.running = Form(Running, partial(suggestions, self.controller.workspace), fields=["on", "as_", "seed"], front=(), folded="Start version, label, seed")
        self.running.more.observe(lambda change: self._follow(), "value")
        self.forecast = widgets.HTML()
        self.predict = self.button("Predict", "predict parameters, bytes and MACs without running anything", self._predict)
        self.stop = self.button("Stop", "stop the running action within a second", self.controller.cancel)
        self.forget = self.button("Remove all steps", "start with an empty pipeline", self._forget)
        self.rows: list[Row] = []
        self.steps = widgets.VBox()
        self.form: Form | None = None
        self.editing: int | None = None
        self._quick, self._fit, self._predicted = True, False, ""
        self._forms: dict[str, Form] = {}
        self._chosen()
        self._technique()
        self._follow()
        self.family.observe(self._chosen, "value")
        self.technique.observe(self._technique, "value")
        self.running.on_change(self._placed)
        palette = [self.family, self.technique, self.about, self.place, self.candidate, widgets.HBox([self.add, self.change, self.leave])]
        chosen = [self.running.box, self.steps, widgets.HBox([self.predict, self.stop, self.forget]), self.forecast]
        self.box.children = [widgets.HTML(heading("A technique")), *palette, widgets.HTML(heading("The pipeline")), *chosen]

    @property
    def lines(self) -> str:
        return self.controller.draft.cell

    # the palette

    def choose(self, stage: type[Stage], values: dict[str, Any] | None = None) -> None:
        """Show the form of a technique with these values."""
        family, _, technique = stage.id.partition(".")
        self.family.value, self.technique.value = family, technique
        if values is not None and self.form is not None:
            self.form.fill(values)

    def _chosen(self, change: Any = None) -> None:
        self.technique.options = offered = _techniques(self.family.value)
        # with no selection before, the list would stay blank
        self.technique.value = next(iter(offered), None)

    def _offer(self) -> None:
        """Update the lists with the current techniques of plugins and cells; the selection stays if it is still available."""
        for control, offered in ((self.family, families), (self.technique, lambda: _techniques(self.family.value))):
            chosen, found = control.value, tuple(offered())
            if control.options != found:
                control.options = found
                control.value = chosen if chosen in found else next(iter(found), None)
        self._technique()

    def _technique(self, change: Any = None) -> None:
        stage = manager().stages().get(f"{self.family.value}.{self.technique.value}")
        if stage is None:
            self.form, self.place.children = None, []
            self.add.disabled = self.change.disabled = True
            write(self.about, "<p>This technique is not available any more: choose another one.</p>")
            write(self.candidate, "")
            return
        needs = ", ".join(stage.needs.names())
        write(self.about, f"<p>{escape(describe(stage))}{f' It needs: {escape(needs)}.' if needs else ''}</p>")
        if self.form is None or self.form.settings is not stage:
            self.form = self._form(stage)
            self.place.children = [self.form.box]
        self._validate_candidate()

    def _form(self, stage: type[Stage]) -> Form:
        """The form of a technique; it keeps its values while other forms are shown."""
        form = self._forms.get(stage.id)
        if form is None or form.settings is not stage:
            if form is not None:
                close(form.box)
            form = self._forms[stage.id] = Form(stage, partial(suggestions, self.controller.workspace), self.controller.model)
            form.on_change(self._validate_candidate)
        return form

    def step(self) -> str:
        """The line of the form's stage."""
        assert self.form is not None
        return " ".join([self.family.value, self.technique.value, *self.form.options()])

    def _validate_candidate(self) -> None:
        if self.form is None or self.form is not self._forms.get(f"{self.family.value}.{self.technique.value}"):
            return
        self.add.disabled = self.change.disabled = self.form.problem is not None
        if self.form.problem is not None or self.controller.session is None:
            write(self.candidate, "")
            return
        at = self.editing
        found = validate_draft(self.controller.draft.with_step(self.step(), at), self.controller.workspace)
        verdict = found[-1 if at is None else min(at, len(found) - 1)] if found else None
        write(self.candidate, f"<p><code>{escape(self.step())}</code> {verdict.html if verdict else ''}</p>")

    # the steps

    def _add(self) -> None:
        step = self.step()
        self.controller.redraft(self.controller.draft.with_step(step), f"added step {len(self.controller.draft.steps) + 1}: {step}")

    def _change(self) -> None:
        at, self.editing = self.editing, None
        if at is not None:
            self.controller.redraft(self.controller.draft.with_step(self.step(), at), f"changed step {at + 1}")
            self.rows[at].edit.focus()

    def _leave(self) -> None:
        at, self.editing = self.editing, None
        self.refresh()
        if at is not None:
            self.rows[at].edit.focus()

    def edit(self, at: int) -> None:
        """Edit a step: show its stage in the form."""
        line = self.controller.draft.steps[at]
        if "\n" in line:
            raise KdError(f"step {at + 1} is a group", "separate its stages with Part first", "then edit them one by one")
        parsed = parse_stage(split(line))
        self.editing = at
        self.choose(parsed.target, parsed.values)
        self.refresh()
        self.technique.focus()
        self.controller.say(f"editing step {at + 1}: change its options above, then press Change step")

    def operate(self, what: str, draft: Draft, at: int, button: str) -> None:
        """Replace the draft, and focus that button of the step at position `at`, or of the nearest step."""
        self.editing = None
        self.controller.redraft(draft, what)
        if draft.steps:
            getattr(self.rows[min(max(at, 0), len(draft.steps) - 1)], button).focus()
        else:
            self.family.focus()

    def _forget(self) -> None:
        self.operate("removed all steps", replace(self.controller.draft, steps=()), 0, "edit")

    def _placed(self) -> None:
        """Copy start version, label and seed from the form to the draft, if it is unfolded."""
        if not self.running.more.value:
            return
        values = self.running.values()
        draft = replace(self.controller.draft, start=str(values.get("on") or ""), label=str(values.get("as_") or ""), seed=values.get("seed"))
        if draft != self.controller.draft:
            self.controller.redraft(draft)

    def _follow(self) -> None:
        """Copy start version, label and seed from the draft to the form, if it is unfolded."""
        if not self.running.more.value:
            return
        draft = self.controller.draft
        options = {"on": draft.start or None, "as_": draft.label or None, "seed": draft.seed}
        if {name: value for name, value in options.items() if value is not None} != self.running.values():
            self.running.fill({name: value for name, value in options.items() if value is not None})

    def refresh(self) -> None:
        self._offer()
        self._follow()
        self.running.refresh()
        if self.form is not None:
            self.form.refresh()
        verdicts = validate_draft(self.controller.draft, self.controller.workspace)
        for number in range(len(self.rows), len(self.controller.draft.steps)):
            self.rows.append(Row(self, number))
        for number, step in enumerate(self.controller.draft.steps):
            self.rows[number].show(step, verdicts[number] if number < len(verdicts) else None, number == self.editing)
        self.steps.children = [row.box for row in self.rows[: len(self.controller.draft.steps)]]
        self.change.layout.display = self.leave.layout.display = None if self.editing is not None else "none"
        self._validate_candidate()
        self._fit = bool(verdicts) and all(verdict.fits for verdict in verdicts)
        self._shape()
        if self.controller.draft.cell == self._predicted:
            return
        self._predicted = self.controller.draft.cell
        write(self.forecast, "<p>Predict shows the expected parameters, bytes and MACs.</p>" if self._fit else "")
        if self._fit and not self.controller.busy and self._quick and all(map(_has_fast_forecast, verdicts)):
            self._predict_at_once()

    def _predict(self) -> None:
        """Predict the result of the draft in the worker's thread, as `--dry-run` does."""
        self.controller.do("predicting", replace(self.controller.draft, dry_run=True).cell, on_done=self._show_plan)

    def _show_plan(self, plan: Plan | None, error: BaseException | None = None) -> None:
        write(self.forecast, plan._repr_html_() if plan is not None else "")

    def _predict_at_once(self) -> None:
        """Predict in this thread, for stages that can be predicted without running them."""
        began = time.monotonic()
        try:
            self._show_plan(self.controller.run_now(replace(self.controller.draft, dry_run=True).cell))
        except KdError as error:
            write(self.forecast, problem(error))
        self._quick = time.monotonic() - began < QUICK_S

    def _shape(self) -> None:
        self.predict.disabled = not self._fit
        self.stop.button_style = "danger" if self.controller.busy else ""

    def busy(self, busy: bool) -> None:
        self._shape()

    def unseen(self) -> Iterable[Any]:
        yield from (row.box for row in self.rows)
        yield from (form.box for form in self._forms.values())


def _techniques(family: str | None) -> list[str]:
    """The techniques of a family, without the family's name."""
    return [id.partition(".")[2] for id in manager().stages() if id.startswith(f"{family}.")]


def _has_fast_forecast(verdict: StepValidity) -> bool:
    """Whether every stage of a step predicts its result without running."""
    return isinstance(verdict.found, list) and all(type(step.stage).forecast is not Stage.forecast for step in verdict.found)


class Row:
    """One step of the pipeline: its line, its validity and its buttons. The focus follows the step when it moves."""

    def __init__(self, tab: PipelineTab, number: int):
        self.text = widgets.HTML(layout={"flex": "1 1 24em"})
        step = f"step {number + 1}"

        def button(word: str, hint: str, done: str, change: Callable[[Draft, int], Draft], at: int, focus: str) -> Any:
            """A button that changes the draft, shows `done` as status, and focuses the button `focus` of the step `at`."""
            return tab.button(f"{word} {number + 1}", hint, lambda: tab.operate(f"{step} {done}", change(tab.controller.draft, number), at, focus))

        self.edit = tab.button(f"Edit {number + 1}", f"change the options of {step}", lambda: tab.edit(number))
        self.up = button("Up", f"run {step} earlier", "moved up", lambda draft, at: draft.moved(at, -1), number - 1, "up")
        self.down = button("Down", f"run {step} later", "moved down", lambda draft, at: draft.moved(at, 1), number + 1, "down")
        loop = "in one loop with the step above it"
        self.join = button("Join", f"train {step} {loop}", f"trains {loop}", Draft.joined, number - 1, "part")
        self.part = button("Part", f"run the stages of {step} one after another", "separated into stages", Draft.parted, number, "edit")
        self.remove = button("Remove", f"remove {step}", "removed", Draft.without, number, "remove")
        self.number = number
        buttons = widgets.HBox([self.edit, self.up, self.down, self.join, self.part, self.remove], layout={"flex_flow": "row wrap"})
        self.box = widgets.HBox([self.text, buttons], layout={"flex_flow": "row wrap", "align_items": "baseline"})

    def show(self, step: str, verdict: StepValidity | None, edited: bool) -> None:
        """Show a step and its validity."""
        group = "\n" in step
        lines = escape(step).replace("\n", "<br>&nbsp;&nbsp;&nbsp;&nbsp;")
        mark = " (being edited above)" if edited else ""
        write(self.text, f"{self.number + 1}. <code>{'together: <br>&nbsp;&nbsp;&nbsp;&nbsp;' if group else ''}{lines}</code>{mark} {verdict.html if verdict else ''}")
        self.join.layout.display = "none" if self.number == 0 else None
        self.part.layout.display = None if group else "none"
