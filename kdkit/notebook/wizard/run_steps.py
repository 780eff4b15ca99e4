"""The steps of a run: which are done, which one is running and which wait, with results as they come; and the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets

from kdkit.display.table import number
from kdkit.forms.widgets import write
from kdkit.notebook.progress import duration
from kdkit.notebook.wizard.step_card import card, step_html
from kdkit.session.history import Version

DONE, RUNNING, WAITING, STOPPED = "✓ done", "▶ running", "· waiting", "✗ stopped"
LONGEST_LOG = 200
"""Lines that the log keeps."""


class RunSteps:
    """The cards of a run.

    Attributes:
        box: the widget.
    """

    def __init__(self) -> None:
        self.box = widgets.HBox()
        self.box.add_class("kdkit-cards")
        self._texts: list[Any] = []
        self._steps: tuple[str, ...] = ()

    def begin(self, steps: Sequence[str]) -> None:
        """Show the steps, all of them waiting."""
        self._steps = tuple(steps)
        while len(self._texts) < len(steps):
            self._texts.append(widgets.HTML())
        old = self.box.children
        cards = [*old, *(card(text) for text in self._texts[len(old) :])]
        self.box.children = cards
        for at, each in enumerate(cards):
            each.layout.display = None if at < len(steps) else "none"
        self.show([], 0, WAITING)

    def show(self, made: Sequence[Version], at: int, state: str) -> None:
        """Show the versions of the steps that are done, and the state of the step at a position; those after it wait."""
        for number_, step in enumerate(self._steps):
            done = number_ < len(made)
            word = DONE if done else state if number_ == at else WAITING
            results = _results(made[number_]) if done else ""
            write(self._texts[number_], f"{step_html(number_, step)}<p><b>{word}</b></p>{results}")


def _results(version: Version) -> str:
    """The figures of a version that a reader looks for first: its quality, size and time, as far as they were measured."""
    figures = [figure for figure in version.report.figures if not figure.name.startswith(("train", "agreement"))][:4]
    rows = "".join(f"<tr><th>{escape(figure.name)}</th><td>{escape(figure.text())}</td></tr>" for figure in figures)
    return f'<p>{escape(version.name)}</p><table class="kdkit-figures">{rows}</table>'


class Estimate:
    """How long a run takes: what passed, without pauses, and what is left of the running step.

    It says nothing about the steps that have not begun, since nothing is known of them.

    >>> now = iter([0.0, 10.0, 10.0, 30.0, 40.0])
    >>> estimate = Estimate(now=lambda: next(now))
    >>> estimate.describe(1, 3, 0.25)
    'step 1 of 3 · 10 s so far · about 30 s left in this step, then 2 more'
    >>> estimate.pause(); estimate.go_on()
    >>> estimate.describe(1, 3, 0.5)
    'step 1 of 3 · 20 s so far · about 20 s left in this step, then 2 more'
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._began = self._step_began = now()
        self._part, self._paused_at = 1, 0.0

    def pause(self) -> None:
        """Stop the clock."""
        self._paused_at = self._now()

    def go_on(self) -> None:
        """Let the clock run again, without the time of the pause."""
        paused = self._now() - self._paused_at
        self._began, self._step_began = self._began + paused, self._step_began + paused

    def describe(self, part: int, parts: int, share: float) -> str:
        """The time that passed and is left.

        Args:
            part, parts: the running step and how many there are.
            share: of the running step that is done, 0 if unknown.
        """
        now = self._now()
        if part != self._part:
            self._part, self._step_began = part, now
        words = [f"step {part} of {parts}", f"{duration(now - self._began)} so far"]
        more = f", then {parts - part} more" if part < parts else ""
        if share > 0.02:
            words.append(f"about {duration((now - self._step_began) * (1 - share) / share)} left in this step{more}")
        elif more:
            words.append(more.removeprefix(", "))
        return " · ".join(words)


class Log:
    """What a run reported, folded.

    Attributes:
        box: the widget.
    """

    def __init__(self) -> None:
        self.box = widgets.HTML()
        self._lines: list[str] = []
        self._began = 0.0

    def begin(self) -> None:
        """Start with an empty log."""
        self._lines, self._began = [], time.monotonic()
        self._show()

    def add(self, text: str) -> None:
        """Add a line, unless it repeats the last one."""
        if not self._lines or not self._lines[-1].endswith(f"  {text}"):
            self._lines = [*self._lines, f"{time.monotonic() - self._began:7.1f} s  {text}"][-LONGEST_LOG:]
            self._show()

    def _show(self) -> None:
        lines = "\n".join(self._lines)
        write(self.box, f"<details><summary>Log ({number(len(self._lines))} lines)</summary><pre>{escape(lines)}</pre></details>" if lines else "")
