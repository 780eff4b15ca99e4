"""Build: the pipeline as a row of cards with predicted figures, the palette of techniques, and the form of the chosen one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from html import escape
from itertools import takewhile
from typing import Any

import ipywidgets as widgets

from kdkit.display.error import problem
from kdkit.errors import KdError
from kdkit.forms.form import Form
from kdkit.forms.widgets import close, write
from kdkit.measurement.size import count_parameters, size_bytes
from kdkit.notebook.parser import parse_stage
from kdkit.notebook.variables import suggestions
from kdkit.notebook.wizard.draft import Draft
from kdkit.notebook.wizard.figures import changed_figures, start_figures
from kdkit.notebook.wizard.palette import Palette
from kdkit.notebook.wizard.step_card import StepCard, card
from kdkit.notebook.wizard.tab import Tab
from kdkit.notebook.wizard.validation import StepValidity, validate_draft
from kdkit.parameters.settings import describe
from kdkit.parameters.tokenizer import split
from kdkit.plugins.manager import manager
from kdkit.session.forecast import Plan, StepForecast
from kdkit.stages.line_options import Running
from kdkit.stages.stage import Stage

QUICK_S = 0.5
"""A forecast that took less than this many seconds is updated with each change; others wait for the button."""


class BuildTab(Tab):
    """The draft, and the techniques that can be added."""

    title = "Build"

    def build(self) -> None:
        self.start = widgets.HTML()
        self.open = self.button("Add a step", "choose a technique", self._open, "primary")
        self.cards: list[StepCard] = []
        self._first, self._last = card(self.start), card(self.open)
        self._last.add_class("kdkit-add")
        self.steps = widgets.HBox([self._first, self._last])
        self.steps.add_class("kdkit-cards")
        self.palette = Palette(self.choose, self._mark, self.button)
        self.about, self.candidate, self.place = widgets.HTML(), widgets.HTML(), widgets.VBox()
        self.add = self.button("Add step", "add this stage after the other steps", self._add, "primary")
        self.change = self.button("Change step", "replace the edited step with this stage", self._change, "primary")
        self.leave = self.button("Leave", "leave the pipeline as it is", self._leave)
        self.chosen = widgets.VBox([self.about, self.place, self.candidate, widgets.HBox([self.add, self.change, self.leave])])
        self.chosen.add_class("kdkit-panel")
        self.running = Form(Running, partial(suggestions, self.controller.workspace), fields=["on", "as_", "seed"], front=(), folded="Start version, label, seed")
        self.running.more.observe(lambda change: self._follow(), "value")
        self.running.on_change(self._placed)
        self.forecast = widgets.HTML()
        self.predict = self.button("Predict", "predict parameters, bytes and MACs without running anything", self._predict)
        self.stop = self.button("Stop", "stop the running action within a second", self.controller.cancel)
        self.forget = self.button("Remove all steps", "start with an empty pipeline", self._forget)
        self.stage: type[Stage] | None = None
        self.form: Form | None = None
        self.editing: int | None = None
        self._opened = False
        self._verdicts: list[StepValidity] = []
        self._plan: Plan | None = None
        self._took: dict[str, list[float]] = {}
        self._predicted: Any = None
        self._forms: dict[str, Form] = {}
        whole = widgets.HBox([self.predict, self.stop, self.forget], layout={"flex_flow": "row wrap"})
        self.box.children = [self.steps, self.palette.box, self.chosen, whole, self.forecast, self.running.box]

    @property
    def lines(self) -> str:
        return self.controller.draft.cell

    # choosing a technique

    def _open(self) -> None:
        self._opened, self.stage = True, None
        self.refresh()
        self.palette.focus()

    def choose(self, stage: type[Stage], values: dict[str, Any] | None = None) -> None:
        """Show the form of a technique, with these values if there are any."""
        self.stage = stage
        self._update_form()
        if values is not None and self.form is not None:
            self.form.fill(values)
        self._shape()
        (self.form if self.form is not None and stage.model_fields else self.leave).focus()

    def _mark(self, stage: type[Stage]) -> str:
        """Whether a technique fits behind the steps, with its defaults."""
        if self.controller.session is None:
            return ""
        if required := [name for name, field in stage.model_fields.items() if field.is_required()]:
            return f"needs {escape(', '.join(required))}"
        found = validate_draft(self.controller.draft.with_step(stage.id.replace(".", " ", 1)), self.controller.workspace)
        if not found or found[-1].fits:
            return found[-1].html.replace("fits", "fits here", 1) if found else ""
        error = found[-1].found
        return f"✗ {escape(error.message.partition(' ')[2] if isinstance(error, KdError) else '')}"

    def _update_form(self) -> None:
        """Show the form of the chosen technique as it is now: a cell that runs again brings another class."""
        if self.stage is None:
            return
        stage = manager().stages().get(self.stage.id)
        if stage is None:
            self.form, self.place.children = None, []
            self.add.disabled = self.change.disabled = True
            write(self.about, "<p>This technique is not available any more: choose another one.</p>")
            write(self.candidate, "")
            return
        self.stage = stage
        needs = ", ".join(stage.needs.names())
        title = f"<p><b>{escape(stage.id.replace('.', ' ', 1))}</b></p>"
        write(self.about, f"{title}<p>{escape(describe(stage))}{f' It needs: {escape(needs)}.' if needs else ''}</p>")
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
        assert self.stage is not None
        return " ".join([*self.stage.id.split(".", 1), *self.form.options()])

    def _validate_candidate(self) -> None:
        """Show whether the form's stage fits, and what it would do; called with each move of a slider."""
        if self.form is None or self.stage is None or self.form is not self._forms.get(self.stage.id):
            return
        self.add.disabled = self.change.disabled = self.form.problem is not None
        if self.form.problem is not None or self.controller.session is None:
            write(self.candidate, "")
            return
        at = len(self.controller.draft.steps) if self.editing is None else self.editing
        draft = replace(self.controller.draft.with_step(self.step(), self.editing))
        found = validate_draft(draft, self.controller.workspace)
        validity = found[min(at, len(found) - 1)] if found else None
        line = f"<p><code>{escape(self.step())}</code> {validity.html if validity else ''}</p>"
        if validity is not None and validity.fits and self._is_quick(found[: at + 1], self.stage.id):
            write(self.candidate, line + self._candidate_figures(replace(draft, steps=draft.steps[: at + 1]), validity))
        else:
            write(self.candidate, line)

    def _candidate_figures(self, draft: Draft, validity: StepValidity) -> str:
        """The figures before and after the last step of a draft."""
        assert self.stage is not None
        assert isinstance(validity.found, list)
        plan, error = self._predict_now(draft, self.stage.id)
        if plan is None:
            return problem(error) if error is not None else ""
        return changed_figures(plan.steps[-1 - len(validity.found)], plan.steps[-1])

    def _is_quick(self, verdicts: Sequence[StepValidity], what: str) -> bool:
        """Whether to predict without being asked: nothing runs, and the last forecast was quick; the first one may take longer."""
        return not self.controller.busy and all(map(_has_fast_forecast, verdicts)) and (len(took := self._took.get(what, [])) < 2 or took[-1] < QUICK_S)

    def _predict_now(self, draft: Draft, what: str) -> tuple[Plan | None, KdError | None]:
        """Predict a draft in this thread, and remember how long it took."""
        began = time.monotonic()
        try:
            return self.controller.run_now(replace(draft, dry_run=True).cell), None
        except KdError as error:
            return None, error
        finally:
            self._took.setdefault(what, []).append(time.monotonic() - began)

    # the steps

    def _add(self) -> None:
        step = self.step()
        self._opened, self.stage = False, None
        self.controller.redraft(self.controller.draft.with_step(step), f"added step {len(self.controller.draft.steps) + 1}: {step}")
        self.open.focus()

    def _change(self) -> None:
        at, step = self.editing, self.step()
        self.editing = self.stage = None
        if at is not None:
            self.controller.redraft(self.controller.draft.with_step(step, at), f"changed step {at + 1}")
            self.cards[at].edit.focus()

    def _leave(self) -> None:
        """Back to the palette, or from an edited step to the pipeline."""
        at, self.editing, self.stage = self.editing, None, None
        self.refresh()
        if at is not None:
            self.cards[at].edit.focus()
        else:
            self.palette.focus()

    def edit(self, at: int) -> None:
        """Edit a step: show its stage in the form."""
        line = self.controller.draft.steps[at]
        if "\n" in line:
            raise KdError(f"step {at + 1} is a group", "separate its stages with Part first", "then edit them one by one")
        parsed = parse_stage(split(line))
        self.editing = at
        self.choose(parsed.target, parsed.values)
        self.refresh()
        self.controller.say(f"editing step {at + 1}: change its options below, then press Change step")

    def operate(self, what: str, draft: Draft, at: int, button: str) -> None:
        """Replace the draft, and focus that button of the step at position `at`, or of the nearest step."""
        self.editing = self.stage = None
        self.controller.redraft(draft, what)
        if draft.steps:
            getattr(self.cards[min(max(at, 0), len(draft.steps) - 1)], button).focus()
        else:
            self.palette.focus()

    def _forget(self) -> None:
        self.operate("removed all steps", replace(self.controller.draft, steps=()), 0, "edit")

    # start version, label and seed

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

    # display

    def refresh(self) -> None:
        self._follow()
        self.running.refresh()
        self._verdicts = validate_draft(self.controller.draft, self.controller.workspace)
        if self.form is not None and self.stage is not None:
            self.form.refresh()
        self._update_form()
        self._predict_at_once()
        self._shape()

    def _shape(self) -> None:
        """Show the parts that belong to what is being done: choosing, setting options, or neither."""
        draft, choosing = self.controller.draft, self.stage is None and (self._opened or not self.controller.draft.steps)
        self.palette.box.layout.display = None if choosing else "none"
        if choosing:
            self.palette.refresh()
        self.chosen.layout.display = None if self.stage is not None else "none"
        self.add.layout.display = None if self.editing is None else "none"
        self.change.layout.display = None if self.editing is not None else "none"
        self._show_cards()
        fits = bool(self._verdicts) and all(validity.fits for validity in self._verdicts)
        self.predict.disabled = not fits
        for button in (self.predict, self.forget):
            button.layout.display = None if draft.steps else "none"
        self.stop.button_style = "danger" if self.controller.busy else ""
        self.stop.layout.display = None if draft.steps else "none"

    def _show_cards(self) -> None:
        draft, session = self.controller.draft, self.controller.session
        for number in range(len(self.cards), len(draft.steps)):
            self.cards.append(StepCard(self, number))
        name = draft.start or (session.head.name if session is not None else "no model yet")
        write(self.start, f"<p>start</p><p><b>{escape(name)}</b></p>{self._start_figures(name)}")
        after = 0
        for number, step in enumerate(draft.steps):
            validity = self._verdicts[number] if number < len(self._verdicts) else None
            before, after = after, after + (len(validity.found) if validity is not None and isinstance(validity.found, list) else 0)
            known = self._plan is not None and before < after < len(self._plan.steps)
            figures = changed_figures(self._plan.steps[before], self._plan.steps[after]) if known and self._plan else ""
            self.cards[number].show(step, validity, figures, number == self.editing)
        shown = (self._first, *(each.box for each in self.cards[: len(draft.steps)]), self._last)
        if self.steps.children != shown:
            self.steps.children = shown

    def _start_figures(self, name: str) -> str:
        """The figures of the start version; its MACs are known once something was predicted."""
        if self._plan is not None:
            return start_figures(self._plan.steps[0])
        model = self.controller.model()
        return "" if model is None else start_figures(StepForecast(name, count_parameters(model), size_bytes(model), None))

    def _predict_at_once(self) -> None:
        """Predict the steps up to the first one that does not fit, if that is quick; nothing if they were predicted before."""
        draft, session = self.controller.draft, self.controller.session
        state = (draft.cell, None if session is None else (id(session.objects), id(session.history)))
        if state == self._predicted:
            return
        self._predicted, self._plan = state, None
        fitting = list(takewhile(lambda validity: validity.fits, self._verdicts))
        write(self.forecast, "<p>Predict shows the expected parameters, bytes and MACs.</p>" if fitting else "")
        if fitting and self._is_quick(fitting, "the pipeline"):
            plan, error = self._predict_now(replace(draft, steps=draft.steps[: len(fitting)]), "the pipeline")
            self._show_plan(plan, error)

    def _predict(self) -> None:
        """Predict the result of the draft in the worker's thread, as `--dry-run` does."""
        self.controller.do("predicting", replace(self.controller.draft, dry_run=True).cell, on_done=self._show_plan)

    def _show_plan(self, plan: Plan | None, error: BaseException | None = None) -> None:
        self._plan = plan
        table = f"<details><summary>The predicted figures as a table</summary>{plan._repr_html_()}</details>" if plan is not None else ""
        write(self.forecast, table or (problem(error) if isinstance(error, KdError) else ""))
        self._show_cards()

    def busy(self, busy: bool) -> None:
        self._shape()

    def unseen(self) -> Iterable[Any]:
        yield from (each.box for each in self.cards)
        yield from (form.box for form in self._forms.values())
        yield from self.palette.unseen()


def _has_fast_forecast(validity: StepValidity) -> bool:
    """Whether every stage of a step predicts its result without running."""
    return isinstance(validity.found, list) and all(type(step.stage).forecast is not Stage.forecast for step in validity.found)
