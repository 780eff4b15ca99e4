"""Model: choose a model of the notebook, and see its layers."""

from __future__ import annotations

from functools import partial
from html import escape
from typing import Any

import ipywidgets as widgets

from kdkit.display.error import problem
from kdkit.display.table import Table, number
from kdkit.errors import KdError
from kdkit.forms.form import Form
from kdkit.forms.widgets import write
from kdkit.measurement.size import count_parameters, size_bytes
from kdkit.models.traits import in_words
from kdkit.notebook.variables import suggestions
from kdkit.notebook.verb import line_of, verbs
from kdkit.notebook.wizard.html import heading
from kdkit.notebook.wizard.tab import Tab
from kdkit.views import Layers


class ModelTab(Tab):
    """The model of the session, and the models that could be used."""

    title = "Model"

    def build(self) -> None:
        self.about, self.layers = widgets.HTML(), widgets.HTML()
        self._shown: Any = None
        self.form = Form(verbs()["use"], partial(suggestions, self.controller.workspace), fields=["model", "as_"])
        self.line = widgets.HTML()
        self.form.on_change(self._changed)
        self.use = self.button("Use this model", "start a session with it, or continue its session; your variable is never changed", self._use, "primary")
        self.box.children = [self.about, self.layers, widgets.HTML(heading("Choose a model of this notebook")), self.form.box, self.line, self.use]

    @property
    def lines(self) -> str:
        return self.using if self.controller.session is None else f"%kd layers {self.controller.draft.start}".rstrip()

    @property
    def using(self) -> str:
        """The line that starts a session with the selected model and the data of the next tab."""
        beside = "Data and task"
        given = self.controller.view.tab(beside).given() if self.controller.view.is_built(beside) else []
        return " ".join([line_of(verbs()["use"], self.form.values()), *given])

    def _changed(self) -> None:
        write(self.line, f"<code>{escape(self.using)}</code>" if self.controller.session is not None else "")
        self.controller.view.show_lines()

    def _use(self) -> None:
        self.controller.do("taking the model", self.using)

    def refresh(self) -> None:
        self.form.refresh()
        session = self.controller.session
        if session is None:
            write(self.about, "<p>There is no session yet: choose the model, then its data in <b>Data and task</b>.</p>")
            write(self.layers, "")
            return
        try:
            version = session.version(self.controller.draft.start or None)
            model = session.history.model_of(version)
        except KdError as error:
            self._shown = None
            write(self.about, problem(error, "The pipeline has no start version"))
            write(self.layers, "")
            return
        # MACs can be counted once there is data
        state = (id(version), id(session.objects))
        if state != self._shown:
            self._shown = state
            write(self.about, _about(version.name, model, version.traits))
            write(self.layers, session.show(Layers(version=version.name))._repr_html_())


def _about(name: str, model: Any, traits: frozenset[str]) -> str:
    facts = [
        ["class", type(model).__name__],
        ["parameters", number(count_parameters(model))],
        ["size", number(size_bytes(model), "B")],
        ["traits", ", ".join(in_words(trait) for trait in sorted(traits)) or "none"],
    ]
    return f"<p>{escape(name)}, the version that the pipeline starts from:</p>{Table(['model', 'value'], facts)._repr_html_()}"
