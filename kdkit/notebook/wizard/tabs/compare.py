"""Compare: a table of the versions, and the charts that verbs draw of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from kdkit.display.error import problem
from kdkit.errors import KdError
from kdkit.forms.widgets import write
from kdkit.notebook.wizard.html import heading
from kdkit.notebook.wizard.tabs.verb_forms import VerbForms
from kdkit.session.history import History


class CompareTab(VerbForms):
    """Tables and charts of versions."""

    title = "Compare"
    press, noun = "Draw", "chart"
    quick = frozenset({"compare", "pareto"})
    """Verbs that are run at once, also the first time: they only read figures."""

    def above(self) -> Sequence[Any]:
        self.table = widgets.HTML()
        self._shown: History | None = None
        return [self.table, widgets.HTML(heading("Charts"))]

    def build(self) -> None:
        super().build()
        self.choice.value = "pareto"

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
        super().refresh()
        session = self.controller.session
        if session is None:
            write(self.table, "<p>There is no session yet.</p>")
        elif session.history is not self._shown:
            self._shown = session.history
            write(self.table, session.compare()._repr_html_())
