"""Progress of a running stage: a bar, a label and curves in a notebook, one line in a terminal, nothing where output is compared."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kdkit import training
from kdkit.display.table import number
from kdkit.errors import printable

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from kdkit.stages.context import Progress

EVERY = 0.2
"""Seconds between two updates of the display; more updates would slow the browser down."""
REDRAW = 1.0
"""Minimum seconds between two charts of the curves."""
DRAWING_PAUSE = 100
"""A chart stays at least this many times as long as it took to draw, so drawing takes at most 1 % of the time."""


@contextlib.contextmanager
def watch(shell: InteractiveShell, quiet: bool = False) -> Iterator[Callable[[Progress], None]]:
    """Show progress during the block; yields the progress callback."""
    view = None if quiet or os.environ.get("KDKIT_STABLE") == "1" else _view(shell)
    if view is None:
        yield lambda progress: None
        return
    clock = Clock()

    def observe(progress: Progress) -> None:
        view.add(progress)
        text = clock.describe(progress)
        if text:
            view.show(progress, text)

    try:
        yield observe
    except BaseException as error:
        view.end("stopped" if isinstance(error, KeyboardInterrupt) else f"stopped: {type(error).__name__}", failed=True)
        raise
    view.end("done", failed=False)


def _view(shell: InteractiveShell) -> Bar | Line | None:
    if getattr(shell, "kernel", None) is not None:
        try:
            from IPython.display import display

            return Bar(place=display)
        except ImportError:
            return None
    return Line() if sys.stdout.isatty() else None


class Clock:
    """Describes progress as text, at most once in `EVERY` seconds, with the predicted time left."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._stage, self._began, self._shown = now, "", 0.0, float("-inf")

    def describe(self, progress: Progress) -> str:
        """The text for a progress message; empty if the last one was less than `EVERY` seconds ago."""
        now = self._now()
        if progress.stage != self._stage or not progress.done:
            self._stage, self._began, self._shown = progress.stage, now, float("-inf")
        if now - self._shown < EVERY and progress.done < progress.total:
            return ""
        self._shown = now
        share = progress.done / progress.total if progress.total else 0
        left = (now - self._began) * (1 - share) / share if share else None
        place = f"stage {progress.part} of {progress.parts}" if progress.parts > 1 else ""
        figures = ", ".join(f"{name} {number(value)}" for name, value in progress.figures.items())
        counted = f"{progress.done:g} of {progress.total:g}" if progress.total > 1 else ""
        return " · ".join(part for part in (progress.stage, place, progress.text, counted, figures, f"{duration(left)} left" if left else "") if part)


def duration(seconds: float) -> str:
    """A duration as text.

    >>> [duration(value) for value in (3.2, 75, 3700)]
    ['3 s', '1:15 min', '1:01 h']
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


class Bar:
    """A progress bar, a label and the training curves below them, as ipywidgets.

    Its text form never changes, so that notebook outputs can be compared.

    Args:
        now: the clock.
        place: displays `box` when there is something to show; None if the box is displayed already.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, place: Callable[[Any], Any] | None = None) -> None:
        import ipywidgets

        class Box(ipywidgets.VBox):
            def __repr__(self) -> str:
                return "kdkit progress"

        self._bar = ipywidgets.FloatProgress(min=0, max=1, layout={"width": "16em"})
        # the bar has no role for screen readers; the label gives the same information as text
        self._label = ipywidgets.Label()
        self._chart = ipywidgets.HTML()
        self.box: Any = Box([ipywidgets.HBox([self._bar, self._label]), self._chart])
        self._place = place
        self._now, self._due = now, float("-inf")
        self._stage = ""
        self._points: list[tuple[float, Mapping[str, float]]] = []

    def begin(self) -> None:
        """Reset to the state before the first message."""
        self._stage, self._points, self._chart.value = "", [], ""
        self._bar.value, self._bar.bar_style, self._label.value = 0, "", ""

    def add(self, progress: Progress) -> None:
        """Add a message to the curves, whether or not it is shown; a new stage starts new curves."""
        if progress.stage != self._stage or (progress.figures and self._points and progress.done < self._points[-1][0]):
            self._stage, self._points, self._chart.value = progress.stage, [], ""
        if progress.figures:
            self._points.append((progress.done, progress.figures))

    def show(self, progress: Progress, text: str) -> None:
        if self._place is not None:
            self._place(self.box)
            self._place = None
        self._bar.max = progress.total or 1
        self._bar.value = min(progress.done, self._bar.max)
        self._label.value = text
        if len(self._points) > 1 and self._now() >= self._due:
            self._draw()

    def _draw(self) -> None:
        began = self._now()
        self._chart.value = training.Curve.of(self._points)._repr_html_()
        ended = self._now()
        self._due = ended + max(REDRAW, DRAWING_PAUSE * (ended - began))

    def end(self, text: str, failed: bool) -> None:
        self._bar.bar_style = "danger" if failed else "success"
        if not failed:
            # a stage need not report its last step
            self._bar.value = self._bar.max
            # the version's report shows the curves now
            self._chart.value = ""
        elif len(self._points) > 1:
            self._draw()
        self._label.value = f"{self._label.value.partition(' · ')[0]} · {text}"


class Line:
    """One line of a terminal, overwritten by each message and erased at the end."""

    def add(self, progress: Progress) -> None:
        """Do nothing: a line has no room for curves."""

    def show(self, progress: Progress, text: str) -> None:
        print(f"\r\x1b[2K{printable(text)}", end="", flush=True)

    def end(self, text: str, failed: bool) -> None:
        print("\r\x1b[2K", end="", flush=True)
