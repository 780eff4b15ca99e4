"""Results: the frontier of quality and cost first, the version that is chosen in it, the other charts, and a table of all versions."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import ipywidgets as widgets

from kdkit.display.error import problem
from kdkit.errors import KdError
from kdkit.forms.widgets import write
from kdkit.notebook.wizard.draft import Draft
from kdkit.notebook.wizard.html import heading
from kdkit.notebook.wizard.tabs.verb_forms import VerbForms
from kdkit.session.history import History


class ResultsTab(VerbForms):
    """Charts and tables of versions, and what to do next with one of them."""

    title = "Results"
    group: ClassVar = "Compare"
    press, noun = "Draw", "chart"
    quick = frozenset({"compare", "pareto"})
    """Verbs that are run at once, also the first time: they only read figures."""

    def build(self) -> None:
        self.table, self.about_version = widgets.HTML(), widgets.HTML()
        self._shown: History | None = None
        self.version = widgets.Dropdown(description="chosen version", style={"description_width": "8em"}, layout={"width": "25em"})
        self.version.observe(self._show_version, "value")
        self.begin = self.button("Build on it", "start the next pipeline from this version", self._begin)
        self.ship = self.button("Export it", "choose a file or a folder for this version", self._ship)
        choice = widgets.HBox([self.version, self.begin, self.ship], layout={"flex_flow": "row wrap"})
        self.chosen = widgets.VBox([choice, self.about_version])
        for name in ("kdkit-panel", "kdkit-chosen"):
            self.chosen.add_class(name)
        super().build()
        self.result.add_class("kdkit-results")
        options = widgets.VBox([self.choice, self.about, self.place, self.buttons])
        tip = widgets.HTML("<small>A click, or Enter, on a point chooses its version.</small>")
        self.box.children = [self.bar.box, self.result, tip, self.chosen, options, widgets.HTML(heading("All versions")), self.table]
        self.choice.value = "pareto"

    # the chosen version

    def _show_version(self, change: Any = None) -> None:
        session = self.controller.session
        if session is None or self.version.value is None:
            write(self.about_version, "")
            return
        try:
            write(self.about_version, session.version(self.version.value)._repr_html_())
        except KdError as error:
            write(self.about_version, problem(error))

    def _begin(self) -> None:
        self.controller.redraft(Draft(start=str(self.version.value)), f"the next pipeline starts from {self.version.value}")
        self.controller.view.open("Build")
        self.controller.view.tab("Build").palette.focus()

    def _ship(self) -> None:
        name = self.version.value
        self.controller.view.open("Export")
        export = self.controller.view.tab("Export")
        export.choice.value = "export"
        export.form.control("version").value = name
        export.form.control("path").first.focus()

    # charts

    def is_quick(self) -> bool:
        return super().is_quick() or (self.choice.value in self.quick and self.choice.value not in self.took)

    def show_quickly(self) -> None:
        word, began = self.choice.value, time.monotonic()
        try:
            self.show(word, self.controller.run_now(self.lines))
        except KdError as error:
            write(self.result, problem(error))
        self.took[word] = time.monotonic() - began

    def refresh(self) -> None:
        session = self.controller.session
        self.begin.disabled = self.ship.disabled = session is None
        if session is None:
            write(self.table, "<p>There is no session yet.</p>")
        elif session.history is not self._shown:
            self._shown = session.history
            write(self.table, session.compare()._repr_html_())
            names = [version.name for version in session.versions if version.model is not None]
            chosen = self.version.value if self.version.value in names else session.head.name
            if self.version.options != tuple(names):
                self.version.options = names
            self.version.value = chosen if chosen in names else None
            self._show_version()
            if self.is_quick() and not self.controller.busy:
                self.show_quickly()
        super().refresh()
