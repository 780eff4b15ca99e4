"""Compare: the versions side by side, and every picture that a verb can draw of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from kdkit.errors import KdError
from kdkit.notebook.desk import Aside
from kdkit.notebook.grammar import read
from kdkit.notebook.wizard.pane import write
from kdkit.notebook.wizard.panes.verb_forms import VerbForms
from kdkit.notebook.wizard.snippets import heading, problem
from kdkit.versions import History


class ComparePane(VerbForms):
    """Tables and pictures of versions."""

    title = "Compare"
    press, noun = "Draw", "picture"
    quick = frozenset({"compare", "pareto"})
    """Drawn before it is known how long they take: they look at figures alone."""

    def above(self) -> Sequence[Any]:
        self.table = widgets.HTML()
        self._shown: History | None = None
        return [self.table, widgets.HTML(heading("Pictures"))]

    def build(self) -> None:
        super().build()
        self.choice.value = "pareto"

    def is_quick(self) -> bool:
        return super().is_quick() or (self.choice.value in self.quick and self.choice.value not in self.took)

    def show_quickly(self) -> None:
        word, began = self.choice.value, time.monotonic()
        try:
            aside = Aside(self.wizard.desk)
            self.show(word, read(self.lines, aside).verb.run(aside))
        except KdError as error:
            write(self.result, problem(error))
        self.took[word] = time.monotonic() - began

    def refresh(self) -> None:
        super().refresh()
        session = self.wizard.session
        if session is None:
            write(self.table, "<p>There is no session yet.</p>")
        elif session.history is not self._shown:
            self._shown = session.history
            write(self.table, session.compare()._repr_html_())
