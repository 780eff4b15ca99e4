"""A step card: one step of the pipeline, whether it fits, its predicted figures, and its buttons."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any, Protocol

import ipywidgets as widgets

from kdkit.forms.widgets import write
from kdkit.notebook.wizard.draft import Draft
from kdkit.notebook.wizard.validation import StepValidity

if TYPE_CHECKING:
    from kdkit.notebook.wizard.controller import Controller


class Owner(Protocol):
    """The tab that holds the cards."""

    controller: Controller

    def button(self, text: str, hint: str, work: Callable[[], None], style: str = "") -> Any:
        """A button."""

    def edit(self, at: int) -> None:
        """Edit the step at a position."""

    def operate(self, what: str, draft: Draft, at: int, button: str) -> None:
        """Replace the draft, and focus that button of the step at position `at`."""


def card(*children: Any) -> Any:
    """A card of the pipeline's row."""
    made = widgets.VBox(children)
    made.add_class("kdkit-card")
    return made


class StepCard:
    """The card at one position. The focus follows a step when it moves; a drag moves it by pressing the same buttons."""

    def __init__(self, tab: Owner, number: int):
        self.number = number
        self.text = widgets.HTML()
        step = f"step {number + 1}"

        def button(word: str, hint: str, done: str, change: Callable[[Draft, int], Draft], at: int, focus: str) -> Any:
            """A button that changes the draft, shows `done` as status, and focuses the button `focus` of the step `at`."""
            return tab.button(f"{word} {number + 1}", hint, lambda: tab.operate(f"{step} {done}", change(tab.controller.draft, number), at, focus))

        loop = "in one loop with the step before it"
        self.edit = tab.button(f"Edit {number + 1}", f"change the options of {step}", lambda: tab.edit(number))
        self.earlier = button("Earlier", f"run {step} earlier", "moved earlier", lambda draft, at: draft.moved(at, -1), number - 1, "earlier")
        self.later = button("Later", f"run {step} later", "moved later", lambda draft, at: draft.moved(at, 1), number + 1, "later")
        self.join = button("Join", f"train {step} {loop}", f"trains {loop}", Draft.joined, number - 1, "part")
        self.part = button("Part", f"run the stages of {step} one after another", "separated into stages", Draft.parted, number, "edit")
        self.remove = button("Remove", f"remove {step}", "removed", Draft.without, number, "remove")
        self.earlier.add_class("kdkit-earlier")
        self.later.add_class("kdkit-later")
        buttons = widgets.HBox([self.edit, self.earlier, self.later, self.join, self.part, self.remove], layout={"flex_flow": "row wrap"})
        buttons.add_class("kdkit-small")
        self.box = card(self.text, buttons)

    def show(self, step: str, validity: StepValidity | None, figures: str, edited: bool) -> None:
        """Show a step.

        Args:
            step: its line or lines.
            validity: whether it fits, None as long as there is no session.
            figures: its predicted figures, as HTML.
            edited: its options are being edited.
        """
        lines, group = step_html(self.number, step), "\n" in step
        mark = "<p><i>being edited below</i></p>" if edited else ""
        fits = f"<p>{validity.html}</p>" if validity else ""
        write(self.text, f"{lines}{mark}{figures}{fits}")
        self.join.layout.display = "none" if self.number == 0 else None
        self.part.layout.display = None if group else "none"


def step_html(number: int, step: str) -> str:
    """A step as its number, its techniques and their options.

    >>> step_html(0, "prune channels --ratio 0.5")
    '<p>1. <b>prune channels</b><br><code>--ratio 0.5</code></p>'
    """
    lines = [_line(line) for line in step.splitlines()]
    return f"<p>{number + 1}. {lines[0]}</p>" if len(lines) == 1 else f"<p>{number + 1}. in one loop</p>" + "".join(f"<p>{line}</p>" for line in lines)


def _line(line: str) -> str:
    """The technique, and below it the options."""
    family, _, rest = line.partition(" ")
    technique, _, options = rest.partition(" ")
    return f"<b>{escape(family)} {escape(technique)}</b>{f'<br><code>{escape(options)}</code>' if options else ''}"
