"""Forms of verbs: a list of verbs, the form of the selected one, and a button that runs its line."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from html import escape
from typing import Any, ClassVar

import ipywidgets as widgets

from kdkit.forms.form import Form
from kdkit.forms.widgets import write
from kdkit.notebook.progress import Bar, Clock
from kdkit.notebook.variables import suggestions
from kdkit.notebook.verb import line_of, verbs
from kdkit.notebook.wizard.tab import Tab
from kdkit.parameters.settings import describe

QUICK_S = 0.3
"""A result that takes less than this many seconds is updated with each change; others wait for the button."""


class VerbForms(Tab):
    """The verbs whose `tab` is this group; a new verb gets its form automatically."""

    group: ClassVar[str]
    press, noun = "Run", "verb"

    def build(self) -> None:
        self.verbs = {word: verb for word, verb in verbs().items() if verb.tab == self.group}
        self.choice = widgets.Dropdown(description=self.noun, options=list(self.verbs), style={"description_width": "13em"}, layout={"width": "30em"})
        self.about, self.place, self.result = widgets.HTML(), widgets.VBox(), widgets.HTML()
        self.forms: dict[str, Form] = {}
        self.took: dict[str, float] = {}
        self.go = self.button(self.press, "run the line below", self.run_line)
        self.cancel = self.button("Stop", "stop within a second", self.controller.cancel)
        self.bar, self.clock = Bar(place=None), Clock()
        self.bar.box.layout.display = "none"
        self.buttons = widgets.HBox([self.go, self.cancel])
        self.choice.observe(self._chosen, "value")
        self.box.children = [self.choice, self.about, self.place, self.buttons, self.bar.box, self.result]
        self._chosen()

    @property
    def form(self) -> Form:
        """The form of the selected verb."""
        word = self.choice.value
        if word not in self.forms:
            self.forms[word] = Form(self.verbs[word], partial(suggestions, self.controller.workspace), self.controller.model)
            self.forms[word].on_change(self._changed)
        return self.forms[word]

    @property
    def lines(self) -> str:
        return line_of(self.verbs[self.choice.value], self.form.values()) if self.controller.session is not None else ""

    def _chosen(self, change: Any = None) -> None:
        write(self.about, f"<p>{escape(describe(self.verbs[self.choice.value]))}</p>")
        self.place.children = [self.form.box]
        write(self.result, "")
        self._changed()

    def _changed(self) -> None:
        self._shape()
        self.controller.view.show_lines()
        if self.is_quick() and not self.go.disabled and not self.controller.busy:
            self.show_quickly()

    def is_quick(self) -> bool:
        """Whether the result is fast enough to be updated without pressing the button."""
        return self.took.get(self.choice.value, QUICK_S) < QUICK_S

    def show_quickly(self) -> None:
        """Run the line in this thread and show the result."""

    def run_line(self) -> None:
        """Run the line in the worker's thread."""
        word, began = self.choice.value, time.monotonic()
        self.bar.begin()

        def done(made: Any, error: BaseException | None) -> None:
            self.bar.box.layout.display = "none"
            if error is None:
                self.took[word] = time.monotonic() - began
                self.show(word, made)

        self.controller.do(word, self.lines, self._observe, done)

    def show(self, word: str, made: Any) -> None:
        """Show the result of a verb."""
        self.result.value = made._repr_html_() if hasattr(made, "_repr_html_") else ""

    def _observe(self, progress: Any) -> None:
        self.bar.box.layout.display = None
        self.bar.add(progress)
        text = self.clock.describe(progress)
        if text:
            self.bar.show(progress, text)

    def refresh(self) -> None:
        self.form.refresh()
        self._shape()

    def _shape(self) -> None:
        self.go.button_style, self.cancel.button_style = ("", "danger") if self.controller.busy else ("primary", "")
        self.go.disabled = self.controller.session is None or self.form.problem is not None

    def busy(self, busy: bool) -> None:
        self._shape()

    def unseen(self) -> Iterable[Any]:
        return [form.box for form in self.forms.values()]
