"""Start: what kdkit understood of the model, the data and the task, how to correct it, and pipelines that it proposes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from html import escape
from typing import Any

import ipywidgets as widgets
from torch import Tensor

from kdkit.data import Batch, Data
from kdkit.display.error import problem
from kdkit.display.table import number
from kdkit.errors import KdError
from kdkit.forms.form import Form
from kdkit.forms.widgets import close, write
from kdkit.measurement.size import count_parameters, size_bytes
from kdkit.models.traits import in_words
from kdkit.notebook.variables import suggestions
from kdkit.notebook.verb import line_of, verbs
from kdkit.notebook.wizard.draft import Draft
from kdkit.notebook.wizard.figures import changed_figures
from kdkit.notebook.wizard.html import heading
from kdkit.notebook.wizard.proposals import Proposal, propose
from kdkit.notebook.wizard.step_card import card
from kdkit.notebook.wizard.tab import Tab
from kdkit.session.session import Session
from kdkit.stages.data_sources import DATA
from kdkit.tasks import Task

DATA_FIELDS = ("train", "eval", "teacher", "calibration", "validation", "example", "tokenizer", "sample", "batch_size")
TASK_FIELDS = ("task", "metric", "loss", "output", "measures", "backend", "trackers", "seed", "verbose")


class StartTab(Tab):
    """The session's model, data and task, and the choice of a pipeline."""

    title = "Start"

    def build(self) -> None:
        names = partial(suggestions, self.controller.workspace)
        self.about_model, self.about_data, self.about_task = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.model_form = Form(verbs()["use"], names, fields=["model", "as_"], front=["model"], folded="Label of the first version")
        self.data_form = Form(verbs()["set"], names, fields=DATA_FIELDS, front=DATA_FIELDS[:3], folded="More data")
        self.task_form = Form(verbs()["set"], names, fields=TASK_FIELDS, front=TASK_FIELDS[:3], folded="More settings")
        self.use = self.button("Use this model", "start a session with it, or continue its session; your variable is never changed", self._use, "primary")
        self.give = self.button("Apply", "apply these settings to the session; empty fields don't change anything", self._give, "primary")
        self.line = widgets.HTML()
        self._panels = {
            "model": widgets.VBox([self.model_form.box, self.line, self.use]),
            "data": widgets.VBox([self.data_form.box]),
            "task": widgets.VBox([self.task_form.box]),
        }
        self.toggles = {name: widgets.ToggleButton(description=f"Change {name}", layout={"width": "auto"}) for name in self._panels}
        for name, panel in self._panels.items():
            panel.add_class("kdkit-panel")
            self.toggles[name].observe(self._shape, "value")
        for form in (self.model_form, self.data_form, self.task_form):
            form.on_change(self._changed)
        cards = [card(about, self.toggles[name]) for name, about in zip(self._panels, (self.about_model, self.about_data, self.about_task), strict=True)]
        self.cards, self.proposed = widgets.HBox(cards), widgets.HBox()
        for row in (self.cards, self.proposed):
            row.add_class("kdkit-cards")
        self.cards.add_class("kdkit-separate")
        self.proposed.add_class("kdkit-separate")
        self.ask = self.button("Propose pipelines", "predict what the techniques would do, and propose three pipelines; nothing is run", self._ask, "primary")
        self.own = self.button("Build your own", "choose the steps yourself", lambda: self.controller.view.open("Build"))
        self.goal = widgets.VBox([widgets.HTML(heading("What do you want?")), widgets.HBox([self.ask, self.own]), self.proposed])
        self._stale: Any = None
        self.box.children = [self.cards, *self._panels.values(), self.give, self.goal]

    # the model, the data and the task

    def given(self) -> list[str]:
        """The options of the forms of data and task."""
        return [*self.data_form.options(), *self.task_form.options()]

    @property
    def using(self) -> str:
        """The line that starts a session with the selected model, and the data if there is no session yet."""
        return " ".join([line_of(verbs()["use"], self.model_form.values()), *([] if self.controller.session is not None else self.given())])

    @property
    def lines(self) -> str:
        if self.controller.session is None:
            return self.using
        return " ".join(["%kd set", *self.given()]) if self.given() else ""

    def _changed(self) -> None:
        write(self.line, f"<p><code>{escape(self.using)}</code></p>" if self.controller.session is not None else "")
        self.controller.view.show_lines()

    def _use(self) -> None:
        self.controller.do("taking the model", self.using, on_done=self._taken)

    def _give(self) -> None:
        if self.lines:
            self.controller.do("taking the model" if self.controller.session is None else "updating the session", self.lines, on_done=self._taken)

    def _taken(self, made: object, error: BaseException | None) -> None:
        if error is None:
            for form in (self.data_form, self.task_form):
                form.fill({})
            focused = next((toggle for toggle in self.toggles.values() if toggle.value), self.ask)
            for toggle in self.toggles.values():
                toggle.value = False
            focused.focus()

    # proposals

    def _ask(self) -> None:
        session, start = self.controller.session, self.controller.draft.start
        if session is None:
            raise KdError("there is no session yet", "choose a model and its data above")
        self.controller.compute("proposing pipelines", lambda observe: propose(session, start, observe), self._show_proposals)

    def _show_proposals(self, made: list[Proposal] | None, error: BaseException | None) -> None:
        self._drop_proposals()
        session = self.controller.session
        if made is None or session is None:
            return
        self._stale = session.objects
        self.proposed.children = [self._card(each, session) for each in made] or [widgets.HTML("<p>No technique makes this model smaller or faster as it is.</p>")]

    def _card(self, proposal: Proposal, session: Session) -> Any:
        draft = Draft(proposal.steps, self.controller.draft.start)
        steps = "".join(f"<li><code>{escape(step)}</code></li>" for step in proposal.steps)
        before, after = proposal.plan.steps[0], proposal.plan.steps[-1]
        latency = _latency(session, draft.start, proposal.latency_ratio)
        text = f"<p><b>{escape(proposal.goal)}</b></p><ol>{steps}</ol>{changed_figures(before, after)}<p>{latency}</p><p>risk for quality: {escape(proposal.risk)}</p>"
        choose = self.button(f"Choose {proposal.goal}", "take these steps to Build, where they can be changed before they run", lambda: self._choose(draft))
        return card(widgets.HTML(text), choose)

    def _choose(self, draft: Draft) -> None:
        self.controller.redraft(replace(self.controller.draft, steps=draft.steps), "took the proposed steps")
        self.controller.view.open("Build")
        self.controller.view.tab("Build").open.focus()

    def _drop_proposals(self) -> None:
        old, self.proposed.children = self.proposed.children, []
        for each in old:
            close(each)

    # display

    def refresh(self) -> None:
        for form in (self.model_form, self.data_form, self.task_form):
            form.refresh()
        session = self.controller.session
        if session is None or session.objects is not self._stale:
            self._drop_proposals()
        write(self.about_model, self._model())
        write(self.about_data, f"<p><b>data</b></p>{_data(session)}")
        write(self.about_task, f"<p><b>task</b></p>{_task(session.task if session is not None else None)}")
        self._changed()
        self._shape()

    def _model(self) -> str:
        session = self.controller.session
        if session is None:
            return "<p><b>model</b></p><p>There is no session yet: choose the model and its data below.</p>"
        try:
            version = session.version(self.controller.draft.start or None)
            model = session.history.model_of(version)
        except KdError as error:
            return f"<p><b>model</b></p>{problem(error, 'The pipeline has no start version')}"
        traits = ", ".join(in_words(trait) for trait in sorted(version.traits)) or "none"
        size = f"{number(count_parameters(model))} parameters, {number(size_bytes(model), 'B')}"
        return f"<p><b>model</b></p><p>{escape(version.name)}: <b>{escape(type(model).__name__)}</b></p><p>{size}</p><p><small>{escape(traits)}</small></p>"

    def _shape(self, change: Any = None) -> None:
        begun = self.controller.session is not None
        for name, panel in self._panels.items():
            # without a session the model and its data must be chosen
            visible = self.toggles[name].value or (not begun and name != "task")
            panel.layout.display = None if visible else "none"
            self.toggles[name].layout.display = None if begun or name == "task" else "none"
        self.use.layout.display = self.line.layout.display = None if begun else "none"
        self.give.description = "Apply" if begun else "Start"
        self.give.layout.display = None if not begun or self.toggles["data"].value or self.toggles["task"].value else "none"
        self.goal.layout.display = None if begun else "none"


def _latency(session: Session, start: str, ratio: float | None) -> str:
    """What the MACs say of the latency afterwards."""
    if ratio is None:
        return "latency: known after the run"
    figure = session.version(start or None).report.get("latency")
    about = f"{number(figure.value * ratio, figure.unit)} (x{ratio:.2g} by its MACs)" if figure is not None else f"x{ratio:.2g} by its MACs"
    return f"latency: about {escape(about)}"


def _data(session: Session | None) -> str:
    known = {name: session.objects[name] for name in DATA if name in session.objects} if session is not None else {}
    if session is None or not known:
        return "<p>There is no data: quality can't be measured, and nothing can be trained.</p>"
    others = ", ".join(sorted(set(session.objects) - set(DATA)))
    return "".join(_one(name, data) for name, data in known.items()) + (f"<p>Other objects: {escape(others)}.</p>" if others else "")


def _one(name: str, data: Data) -> str:
    labels = "with labels" if data.labelled else "without labels"
    return f"<p><b>{escape(name)}</b>: {escape(data.reason)}, {labels}<br><small>a batch: {escape(_shapes(data.example()))}</small></p>"


def _task(task: Task | None) -> str:
    if task is None:
        return "<p>There is no task yet: kdkit infers it from the data.</p>"
    return f"<p><b>{escape(task.name)}</b>, since {escape(task.reason)}.</p><p>Its metric is {escape(task.metric)}.</p>"


def _shapes(batch: Batch) -> str:
    """The inputs of a batch: "float32 32 x 1 x 8 x 8"."""
    return "; ".join(_inputs(batch))


def _inputs(batch: Batch) -> Iterator[str]:
    for name, value in (*(("", each) for each in batch.args), *batch.kwargs.items()):
        if isinstance(value, Tensor):
            yield f"{f'{name} ' if name else ''}{str(value.dtype).removeprefix('torch.')} {' x '.join(map(str, value.shape))}"
