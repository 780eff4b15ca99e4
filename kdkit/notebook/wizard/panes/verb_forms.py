"""Forms of verbs: a list of them, the form of the one that is chosen, and a button that carries out its line."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial
from html import escape
from typing import Any

import ipywidgets as widgets

from kdkit.contract import describe
from kdkit.notebook.namespace import offers
from kdkit.notebook.progress import Bar, Clock
from kdkit.notebook.verbs import verbs
from kdkit.notebook.wizard.form import Form, line_of
from kdkit.notebook.wizard.pane import Pane, write

QUICK_S = 0.3
"""Seconds up to which a result is made anew when the form or the session changes; one that takes longer waits for its button."""


class VerbForms(Pane):
    """The verbs that declare to belong to this pane; whatever is new among them has its form for free."""

    press, noun = "Do it", "verb"

    def build(self) -> None:
        self.verbs = {word: verb for word, verb in verbs().items() if verb.pane == self.title}
        self.choice = widgets.Dropdown(description=self.noun, options=list(self.verbs), style={"description_width": "13em"}, layout={"width": "30em"})
        self.about, self.place, self.result = widgets.HTML(), widgets.VBox(), widgets.HTML()
        self.forms: dict[str, Form] = {}
        self.took: dict[str, float] = {}
        self.go = self.button(self.press, "carry out the line below", self.carry_out)
        self.cancel = self.button("Stop", "stop within a second", self.wizard.cancel)
        self.bar, self.clock = Bar(place=None), Clock()
        self.bar.box.layout.display = "none"
        self.choice.observe(self._chosen, "value")
        self.box.children = [*self.above(), self.choice, self.about, self.place, widgets.HBox([self.go, self.cancel]), self.bar.box, self.result]
        self._chosen()

    def above(self) -> Sequence[Any]:
        """What stands over the list of verbs."""
        return ()

    @property
    def form(self) -> Form:
        """The form of the verb that is chosen."""
        word = self.choice.value
        if word not in self.forms:
            self.forms[word] = Form(self.verbs[word], partial(offers, self.wizard.desk), self.wizard.model)
            self.forms[word].on_change(self._changed)
        return self.forms[word]

    @property
    def lines(self) -> str:
        return line_of(self.verbs[self.choice.value], self.form.values()) if self.wizard.session is not None else ""

    def _chosen(self, change: Any = None) -> None:
        write(self.about, f"<p>{escape(describe(self.verbs[self.choice.value]))}</p>")
        self.place.children = [self.form.box]
        write(self.result, "")
        self._changed()

    def _changed(self) -> None:
        self._shape()
        self.wizard.show_lines()
        if self.is_quick() and not self.go.disabled and not self.wizard.busy:
            self.show_quickly()

    def is_quick(self) -> bool:
        """Whether the result can be shown without being asked for."""
        return self.took.get(self.choice.value, QUICK_S) < QUICK_S

    def show_quickly(self) -> None:
        """Show the result at once, in this thread."""

    def carry_out(self) -> None:
        """Carry out the line, in the worker's thread."""
        word, began = self.choice.value, time.monotonic()
        self.bar.begin()

        def done(made: Any, error: BaseException | None) -> None:
            self.bar.box.layout.display = "none"
            if error is None:
                self.took[word] = time.monotonic() - began
                self.show(word, made)

        self.wizard.do(word, self.lines, self._observe, done)

    def show(self, word: str, made: Any) -> None:
        """Show what a verb gave."""
        self.result.value = made._repr_html_() if hasattr(made, "_repr_html_") else ""

    def _observe(self, progress: Any) -> None:
        self.bar.box.layout.display = None
        self.bar.hear(progress)
        text = self.clock.tell(progress)
        if text:
            self.bar.show(progress, text)

    def refresh(self) -> None:
        self.form.refresh()
        self._shape()

    def _shape(self) -> None:
        self.go.button_style, self.cancel.button_style = ("", "danger") if self.wizard.busy else ("primary", "")
        self.go.disabled = self.wizard.session is None or self.form.problem is not None

    def busy(self, busy: bool) -> None:
        self._shape()

    def unseen(self) -> Iterable[Any]:
        return [form.box for form in self.forms.values()]
