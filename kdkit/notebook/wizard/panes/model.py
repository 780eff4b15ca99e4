"""Model: what is in memory, and what it is made of."""

from __future__ import annotations

from functools import partial
from html import escape
from typing import Any

import ipywidgets as widgets

from kdkit.counting import count_parameters, size_bytes
from kdkit.errors import KdError
from kdkit.notebook.namespace import offers
from kdkit.notebook.verbs import Use
from kdkit.notebook.wizard.form import Form, line_of
from kdkit.notebook.wizard.pane import Pane, write
from kdkit.notebook.wizard.snippets import heading, problem
from kdkit.pipeline import in_words
from kdkit.table import Table, number


class ModelPane(Pane):
    """The model the session works on, or the choice of one."""

    title = "Model"

    def build(self) -> None:
        self.about, self.layers = widgets.HTML(), widgets.HTML()
        self._shown: Any = None
        self.form = Form(Use, partial(offers, self.wizard.desk), fields=["model", "as_"])
        self.line = widgets.HTML()
        self.form.on_change(self._said)
        self.use = self.button("Use this model", "a new session begins with it; your variable is never changed", self._use, "primary")
        self.box.children = [self.about, self.layers, widgets.HTML(heading("Choose a model of this notebook")), self.form.box, self.line, self.use]

    @property
    def lines(self) -> str:
        return self.using if self.wizard.session is None else f"%kd layers {self.wizard.draft.start}".rstrip()

    @property
    def using(self) -> str:
        """The line that begins a session with the model that is chosen and the data beside it."""
        beside = "Data and task"
        given = self.wizard.pane(beside).given() if self.wizard.is_built(beside) else []
        return " ".join([line_of(Use, self.form.values()), *given])

    def _said(self) -> None:
        write(self.line, f"<code>{escape(self.using)}</code>" if self.wizard.session is not None else "")
        self.wizard.show_lines()

    def _use(self) -> None:
        self.wizard.do("taking the model", self.using)

    def refresh(self) -> None:
        self.form.refresh()
        session = self.wizard.session
        if session is None:
            write(self.about, "<p>There is no session yet: choose the model, then say in <b>Data and task</b> what it is to be judged on.</p>")
            write(self.layers, "")
            return
        try:
            version = session.version(self.wizard.draft.start or None)
            model = session.history.model_of(version)
        except KdError as error:
            self._shown = None
            write(self.about, problem(error, "The pipeline has nothing to begin with"))
            write(self.layers, "")
            return
        # MACs are told once there is data
        seen = (id(version), id(session.objects))
        if seen != self._shown:
            self._shown = seen
            write(self.about, _about(version.name, model, version.traits))
            write(self.layers, session.layers(version)._repr_html_())


def _about(name: str, model: Any, traits: frozenset[str]) -> str:
    facts = [
        ["class", type(model).__name__],
        ["parameters", number(count_parameters(model))],
        ["size", number(size_bytes(model), "B")],
        ["it has", ", ".join(in_words(trait) for trait in sorted(traits)) or "no traits"],
    ]
    return f"<p>{escape(name)}, the version that the pipeline begins with:</p>{Table(['of the model', 'found'], facts)._repr_html_()}"
