"""Pipeline: techniques to choose from, the steps that were chosen, and what they would do, judged and foretold before anything runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from html import escape
from typing import Any

import ipywidgets as widgets

from kdkit.contract import Stage, describe
from kdkit.errors import KdError
from kdkit.forecast import Plan
from kdkit.lines import split
from kdkit.notebook.desk import Aside
from kdkit.notebook.grammar import read, unresolved
from kdkit.notebook.help import families
from kdkit.notebook.namespace import offers
from kdkit.notebook.verbs import Running
from kdkit.notebook.wizard.draft import Draft
from kdkit.notebook.wizard.form import Form
from kdkit.notebook.wizard.judgement import Verdict, judge
from kdkit.notebook.wizard.pane import Pane, close, write
from kdkit.notebook.wizard.snippets import heading, problem
from kdkit.plugins import manager

QUICK_S = 0.5
"""Seconds up to which a forecast is made anew after each change; one that takes longer waits for its button."""


class PipelinePane(Pane):
    """The draft, and what can be added to it."""

    title = "Pipeline"

    def build(self) -> None:
        style, layout = {"description_width": "13em"}, {"width": "30em"}
        self.family = widgets.Dropdown(description="family", options=families(), style=style, layout=layout)
        self.technique = widgets.Dropdown(description="technique", style=style, layout=layout)
        self.about, self.candidate, self.place = widgets.HTML(), widgets.HTML(), widgets.VBox()
        self.add = self.button("Add step", "put this stage behind the steps below", self._add, "primary")
        self.change = self.button("Change step", "put this stage in place of the step that is edited", self._change, "primary")
        self.leave = self.button("Leave it", "go on without changing the step", self._leave)
        self.running = Form(Running, partial(offers, self.wizard.desk), fields=["on", "as_", "seed"])
        self.forecast = widgets.HTML()
        self.predict = self.button("Predict", "foretell parameters, bytes and MACs; nothing is run", self._predict)
        self.stop = self.button("Stop", "stop what is being done within a second", self.wizard.cancel)
        self.forget = self.button("Remove all steps", "begin the pipeline anew", self._forget)
        self.rows: list[Row] = []
        self.steps = widgets.VBox()
        self.form: Form | None = None
        self.editing: int | None = None
        self._quick, self._fit, self._foreseen = True, False, ""
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
        return self.wizard.draft.cell

    # the palette

    def choose(self, stage: type[Stage], values: dict[str, Any] | None = None) -> None:
        """Show a technique's form, with these values."""
        family, _, technique = stage.id.partition(".")
        self.family.value, self.technique.value = family, technique
        if values is not None and self.form is not None:
            self.form.fill(values)

    def _chosen(self, change: Any = None) -> None:
        self.technique.options = offered = _techniques(self.family.value)
        # a list that showed nothing goes on to do so
        self.technique.value = next(iter(offered), None)

    def _offer(self) -> None:
        """Offer what the plugins and cells of the notebook bring by now; the choice stays, where it is still among it."""
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
            write(self.about, "<p>It is not there any more: choose another one.</p>")
            write(self.candidate, "")
            return
        needs = ", ".join(stage.needs.names())
        write(self.about, f"<p>{escape(describe(stage))}{f' It needs: {escape(needs)}.' if needs else ''}</p>")
        if self.form is None or self.form.settings is not stage:
            self.form = self._form(stage)
            self.place.children = [self.form.box]
        self._judge_candidate()

    def _form(self, stage: type[Stage]) -> Form:
        """The form of a technique; it keeps what was said in it while others are looked at."""
        held = self._forms.get(stage.id)
        if held is None or held.settings is not stage:
            if held is not None:
                close(held.box)
            held = self._forms[stage.id] = Form(stage, partial(offers, self.wizard.desk), self.wizard.model)
            held.on_change(self._judge_candidate)
        return held

    def step(self) -> str:
        """The line of the stage that the form says."""
        assert self.form is not None
        return " ".join([self.family.value, self.technique.value, *self.form.options()])

    def _judge_candidate(self) -> None:
        if self.form is None or self.form is not self._forms.get(f"{self.family.value}.{self.technique.value}"):
            return
        self.add.disabled = self.change.disabled = self.form.problem is not None
        if self.form.problem is not None or self.wizard.session is None:
            write(self.candidate, "")
            return
        at = self.editing
        found = judge(self.wizard.draft.with_step(self.step(), at), self.wizard.desk)
        verdict = found[-1 if at is None else min(at, len(found) - 1)] if found else None
        write(self.candidate, f"<p><code>{escape(self.step())}</code> {verdict.html if verdict else ''}</p>")

    # the steps

    def _add(self) -> None:
        step = self.step()
        self.wizard.redraft(self.wizard.draft.with_step(step), f"step {len(self.wizard.draft.steps) + 1} was added: {step}")

    def _change(self) -> None:
        at, self.editing = self.editing, None
        if at is not None:
            self.wizard.redraft(self.wizard.draft.with_step(self.step(), at), f"step {at + 1} was changed")
            self.rows[at].edit.focus()

    def _leave(self) -> None:
        at, self.editing = self.editing, None
        self.refresh()
        if at is not None:
            self.rows[at].edit.focus()

    def edit(self, at: int) -> None:
        """Show a step's stage in the form, to be changed."""
        line = self.wizard.draft.steps[at]
        if "\n" in line:
            raise KdError(f"step {at + 1} is a group", "take it apart first: Part", "then edit its stages one by one")
        made, values, _ = unresolved(split(line))
        self.editing = at
        self.choose(made, values)
        self.refresh()
        self.technique.focus()
        self.wizard.say(f"step {at + 1} is edited: change its options above, then press Change step")

    def operate(self, what: str, draft: Draft, at: int, button: str) -> None:
        """Take another draft, and leave the focus on that button of the step at that place, or of the one that is nearest."""
        self.editing = None
        self.wizard.redraft(draft, what)
        if draft.steps:
            getattr(self.rows[min(max(at, 0), len(draft.steps) - 1)], button).focus()
        else:
            self.family.focus()

    def _forget(self) -> None:
        self.operate("the pipeline has no steps", replace(self.wizard.draft, steps=()), 0, "edit")

    def _placed(self) -> None:
        """Take over where the pipeline begins, what it is called, and its seed."""
        values = self.running.values()
        draft = replace(self.wizard.draft, start=str(values.get("on") or ""), label=str(values.get("as_") or ""), seed=values.get("seed"))
        if draft != self.wizard.draft:
            self.wizard.redraft(draft)

    def _follow(self) -> None:
        """Show where the draft begins, what it is called, and its seed."""
        draft = self.wizard.draft
        said = {"on": draft.start or None, "as_": draft.label or None, "seed": draft.seed}
        if {name: value for name, value in said.items() if value is not None} != self.running.values():
            self.running.fill({name: value for name, value in said.items() if value is not None})

    def refresh(self) -> None:
        self._offer()
        self._follow()
        self.running.refresh()
        if self.form is not None:
            self.form.refresh()
        verdicts = judge(self.wizard.draft, self.wizard.desk)
        for number in range(len(self.rows), len(self.wizard.draft.steps)):
            self.rows.append(Row(self, number))
        for number, step in enumerate(self.wizard.draft.steps):
            self.rows[number].show(step, verdicts[number] if number < len(verdicts) else None, number == self.editing)
        self.steps.children = [row.box for row in self.rows[: len(self.wizard.draft.steps)]]
        self.change.layout.display = self.leave.layout.display = None if self.editing is not None else "none"
        self._judge_candidate()
        self._fit = bool(verdicts) and all(verdict.fits for verdict in verdicts)
        self._shape()
        if self.wizard.draft.cell == self._foreseen:
            return
        self._foreseen = self.wizard.draft.cell
        write(self.forecast, "<p>Predict foretells parameters, bytes and MACs.</p>" if self._fit else "")
        if self._fit and not self.wizard.busy and self._quick and all(map(_is_foretold_cheaply, verdicts)):
            self._predict_at_once()

    def _predict(self) -> None:
        """Foretell in the worker's thread what the draft would do, as `--dry-run` does."""
        self.wizard.do("predicting", replace(self.wizard.draft, dry_run=True).cell, then=self._foretold)

    def _foretold(self, plan: Plan | None, error: BaseException | None = None) -> None:
        write(self.forecast, plan._repr_html_() if plan is not None else "")

    def _predict_at_once(self) -> None:
        """The same here and now, for what is foretold without doing it."""
        began = time.monotonic()
        try:
            aside = Aside(self.wizard.desk)
            self._foretold(read(replace(self.wizard.draft, dry_run=True).cell, aside).verb.run(aside))
        except KdError as error:
            write(self.forecast, problem(error))
        self._quick = time.monotonic() - began < QUICK_S

    def _shape(self) -> None:
        self.predict.disabled = not self._fit
        self.stop.button_style = "danger" if self.wizard.busy else ""

    def busy(self, busy: bool) -> None:
        self._shape()

    def unseen(self) -> Iterable[Any]:
        yield from (row.box for row in self.rows)
        yield from (form.box for form in self._forms.values())


def _techniques(family: str | None) -> list[str]:
    """Of a family, by the names that stand behind its own."""
    return [id.partition(".")[2] for id in manager().stages() if id.startswith(f"{family}.")]


def _is_foretold_cheaply(verdict: Verdict) -> bool:
    """Whether each of a step's stages says what it leaves behind without doing its work."""
    return isinstance(verdict.found, list) and all(type(step.stage).forecast is not Stage.forecast for step in verdict.found)


class Row:
    """One step of the pipeline: its line, the verdict on it, and what can be done with it. The focus goes along with the step."""

    def __init__(self, pane: PipelinePane, number: int):
        self.text = widgets.HTML(layout={"flex": "1 1 24em"})
        step = f"step {number + 1}"

        def button(word: str, hint: str, done: str, change: Callable[[Draft, int], Draft], at: int, focus: str) -> Any:
            """Press it, and what is `done` is told; then the focus is on the button `focus` of the step `at`."""
            return pane.button(f"{word} {number + 1}", hint, lambda: pane.operate(f"{step} {done}", change(pane.wizard.draft, number), at, focus))

        self.edit = pane.button(f"Edit {number + 1}", f"change the options of {step}", lambda: pane.edit(number))
        self.up = button("Up", f"run {step} earlier", "was moved up", lambda draft, at: draft.moved(at, -1), number - 1, "up")
        self.down = button("Down", f"run {step} later", "was moved down", lambda draft, at: draft.moved(at, 1), number + 1, "down")
        loop = "in one loop with the step above it"
        self.join = button("Join", f"train {step} {loop}", f"trains {loop}", Draft.joined, number - 1, "part")
        self.part = button("Part", f"run the stages of {step} one after another", "was taken apart", Draft.parted, number, "edit")
        self.remove = button("Remove", f"leave out {step}", "was removed", Draft.without, number, "remove")
        self.number = number
        buttons = widgets.HBox([self.edit, self.up, self.down, self.join, self.part, self.remove], layout={"flex_flow": "row wrap"})
        self.box = widgets.HBox([self.text, buttons], layout={"flex_flow": "row wrap", "align_items": "baseline"})

    def show(self, step: str, verdict: Verdict | None, edited: bool) -> None:
        """Show a step, and what is said of it."""
        group = "\n" in step
        lines = escape(step).replace("\n", "<br>&nbsp;&nbsp;&nbsp;&nbsp;")
        mark = " (edited above)" if edited else ""
        write(self.text, f"{self.number + 1}. <code>{'together: <br>&nbsp;&nbsp;&nbsp;&nbsp;' if group else ''}{lines}</code>{mark} {verdict.html if verdict else ''}")
        self.join.layout.display = "none" if self.number == 0 else None
        self.part.layout.display = None if group else "none"
