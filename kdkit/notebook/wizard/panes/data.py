"""Data and task: what was recognised, why, and how to change it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from html import escape

import ipywidgets as widgets
from torch import Tensor

from kdkit.data import Batch
from kdkit.notebook.namespace import offers
from kdkit.notebook.verbs import Given
from kdkit.notebook.wizard.form import Form
from kdkit.notebook.wizard.pane import Pane, write
from kdkit.notebook.wizard.snippets import heading
from kdkit.objects import DATA
from kdkit.session import Session
from kdkit.table import Table


class DataPane(Pane):
    """The session's data and task, and whatever else it can be given."""

    title = "Data and task"

    def build(self) -> None:
        self.about = widgets.HTML()
        self.form = Form(Given, partial(offers, self.wizard.desk), fields=[name for name in Given.model_fields if name != "others"])
        self.form.on_change(self.wizard.show_lines)
        self.give = self.button("Apply", "give the session what is said here; what is not said stays", self._give, "primary")
        self.box.children = [self.about, widgets.HTML(heading("Give it data, a teacher, settings")), self.form.box, self.give]

    def given(self) -> list[str]:
        """The options that say what the form does."""
        return self.form.options()

    @property
    def lines(self) -> str:
        if self.wizard.session is None:
            return self.wizard.pane("Model").using
        return " ".join(["%kd set", *self.given()]) if self.given() else ""

    def _give(self) -> None:
        if self.lines:
            self.wizard.do("taking the model" if self.wizard.session is None else "giving it to the session", self.lines, then=self._taken)

    def _taken(self, made: object, error: BaseException | None) -> None:
        if error is None:
            self.form.fill({})

    def refresh(self) -> None:
        self.form.refresh()
        session = self.wizard.session
        self.give.description = "Apply" if session is not None else "Begin"
        write(self.about, recognised(session) if session is not None else "<p>There is no session yet: choose a model first.</p>")


def recognised(session: Session) -> str:
    """What a session made of its data and its model, in words."""
    held = {name: session.objects[name] for name in DATA if name in session.objects}
    rows = [[name, data.why, _shapes(data.example()), "yes" if data.labelled else "no"] for name, data in held.items()]
    found = Table(["data", "taken for", "a batch", "labels"], rows)._repr_html_() if rows else "<p>No data: quality can't be measured, and nothing can be trained.</p>"
    others = sorted(set(session.objects) - set(DATA))
    task = session.task
    told = f"Task: <b>{escape(task.name)}</b>, since {escape(task.why)}. Its metric is {escape(task.metric)}." if task else "No task yet: it is guessed from data."
    change = "Another task, loss or metric: choose it below." if task else ""
    return f"{found}<p>{told} {change}</p>" + (f"<p>Other objects: {escape(', '.join(others))}.</p>" if others else "")


def _shapes(batch: Batch) -> str:
    """The inputs of a batch: "float32 32 x 1 x 8 x 8"."""
    return "; ".join(_described(batch))


def _described(batch: Batch) -> Iterator[str]:
    for name, value in (*(("", each) for each in batch.args), *batch.kwargs.items()):
        if isinstance(value, Tensor):
            yield f"{f'{name} ' if name else ''}{str(value.dtype).removeprefix('torch.')} {' x '.join(map(str, value.shape))}"
