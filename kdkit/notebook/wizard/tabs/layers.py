"""Layers: the modules of the start version, with their parameters and MACs."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets

from kdkit.display.error import problem
from kdkit.errors import KdError
from kdkit.forms.widgets import write
from kdkit.notebook.wizard.tab import Tab
from kdkit.views import Layers


class LayersTab(Tab):
    """The layers of the version that the pipeline starts from."""

    title = "Layers"

    def build(self) -> None:
        self.layers = widgets.HTML()
        self._shown: Any = None
        self.box.children = [self.layers]

    @property
    def lines(self) -> str:
        return "" if self.controller.session is None else f"%kd layers {self.controller.draft.start}".rstrip()

    def refresh(self) -> None:
        session = self.controller.session
        if session is None:
            write(self.layers, "<p>There is no session yet: choose a model in <b>Start</b>.</p>")
            return
        try:
            version = session.version(self.controller.draft.start or None)
            state = (id(version), id(session.objects))
            if state != self._shown:
                write(self.layers, session.show(Layers(version=version.name))._repr_html_())
                # MACs can be counted once there is data
                self._shown = state
        except KdError as error:
            self._shown = None
            write(self.layers, problem(error, "The pipeline has no start version"))
