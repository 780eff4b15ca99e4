"""Data and task: how kdkit interprets them, why, and how to change it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from html import escape

import ipywidgets as widgets
from torch import Tensor

from kdkit.data import Batch, Data
from kdkit.display.table import Table
from kdkit.forms.form import Form
from kdkit.forms.widgets import write
from kdkit.notebook.variables import suggestions
from kdkit.notebook.verb import verbs
from kdkit.notebook.wizard.html import heading
from kdkit.notebook.wizard.tab import Tab
from kdkit.session.session import Session
from kdkit.stages.data_sources import DATA
from kdkit.tasks import Task


class DataTab(Tab):
    """The session's data, task, teacher and settings."""

    title = "Data and task"

    def build(self) -> None:
        self.about = widgets.HTML()
        self.form = Form(verbs()["set"], partial(suggestions, self.controller.workspace), fields=[name for name in verbs()["set"].model_fields if name != "others"])
        self.form.on_change(self.controller.view.show_lines)
        self.give = self.button("Apply", "apply these settings to the session; empty fields don't change anything", self._give, "primary")
        self.box.children = [self.about, widgets.HTML(heading("Set data, a teacher, settings")), self.form.box, self.give]

    def given(self) -> list[str]:
        """The options of the form's line."""
        return self.form.options()

    @property
    def lines(self) -> str:
        if self.controller.session is None:
            return self.controller.view.tab("Model").using
        return " ".join(["%kd set", *self.given()]) if self.given() else ""

    def _give(self) -> None:
        if self.lines:
            self.controller.do("taking the model" if self.controller.session is None else "updating the session", self.lines, on_done=self._taken)

    def _taken(self, made: object, error: BaseException | None) -> None:
        if error is None:
            self.form.fill({})

    def refresh(self) -> None:
        self.form.refresh()
        session = self.controller.session
        self.give.description = "Apply" if session is not None else "Start"
        write(self.about, interpretation(session) if session is not None else "<p>There is no session yet: choose a model first.</p>")


def interpretation(session: Session) -> str:
    """How a session interprets its data and its task, as HTML."""
    known = {name: session.objects[name] for name in DATA if name in session.objects}
    others = sorted(set(session.objects) - set(DATA))
    return _data(known) + _task(session.task) + (f"<p>Other objects: {escape(', '.join(others))}.</p>" if others else "")


def _data(known: Mapping[str, Data]) -> str:
    if not known:
        return "<p>There is no data: quality can't be measured, and nothing can be trained.</p>"
    rows = [[name, data.reason, _shapes(data.example()), "yes" if data.labelled else "no"] for name, data in known.items()]
    return Table(["data", "interpreted as", "a batch", "labels"], rows)._repr_html_()


def _task(task: Task | None) -> str:
    if task is None:
        return "<p>There is no task yet: kdkit infers it from the data.</p>"
    found = f"Task: <b>{escape(task.name)}</b>, since {escape(task.reason)}. Its metric is {escape(task.metric)}."
    return f"<p>{found} Choose another task, loss or metric below.</p>"


def _shapes(batch: Batch) -> str:
    """The inputs of a batch: "float32 32 x 1 x 8 x 8"."""
    return "; ".join(_inputs(batch))


def _inputs(batch: Batch) -> Iterator[str]:
    for name, value in (*(("", each) for each in batch.args), *batch.kwargs.items()):
        if isinstance(value, Tensor):
            yield f"{f'{name} ' if name else ''}{str(value.dtype).removeprefix('torch.')} {' x '.join(map(str, value.shape))}"
