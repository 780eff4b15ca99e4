"""Figures: predicted figures before and after a step, as HTML with a bar for what remains."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from kdkit.display.table import number
from kdkit.session.forecast import StepForecast

FIGURES = {"size_bytes": ("size", "B"), "parameters": ("parameters", ""), "macs": ("MACs", "")}
"""Field of a forecast -> what a reader calls it, and its unit."""


def start_figures(figures: StepForecast) -> str:
    """The figures of the version that a pipeline starts from.

    >>> "18 k" in start_figures(StepForecast("@base", 18_000, 72_000, None))
    True
    """
    rows = [f"<tr><th>{name}</th><td>{number(getattr(figures, field), unit)}</td></tr>" for field, (name, unit) in _known(figures)]
    return f'<table class="kdkit-figures">{"".join(rows)}</table>'


def changed_figures(before: StepForecast, after: StepForecast) -> str:
    """Each figure before and after a step, with a bar for the share that remains.

    >>> html = changed_figures(StepForecast("@base", 1000, 4000, None), StepForecast("prune channels", 250, 1000, None))
    >>> "x0.25" in html, "MACs" in html
    (True, False)
    """
    rows = []
    for field, (name, unit) in _known(after):
        old, new = getattr(before, field), getattr(after, field)
        if old is None or new == old:
            rows.append(f"<tr><th>{name}</th><td>{number(new, unit)}</td><td>{'as before' if old is not None else ''}</td></tr>")
        else:
            rows.append(f"<tr><th>{name}</th><td>{number(old, unit)} → <b>{number(new, unit)}</b></td><td>{_bar(new / old) if old else ''}</td></tr>")
    return f'<table class="kdkit-figures">{"".join(rows)}</table>'


def _known(figures: StepForecast) -> Iterator[tuple[str, tuple[str, str]]]:
    return ((field, words) for field, words in FIGURES.items() if getattr(figures, field) is not None)


def _bar(share: float) -> str:
    """A bar, and the share as a number."""
    return f"{bar(share)} {escape(f'x{share:.2g}')}"


def bar(share: float) -> str:
    """A bar as long as a share. It says nothing to a screen reader: write the figure beside it."""
    return f'<span class="kdkit-bar" aria-hidden="true"><span style="width:{min(share, 1.0):.1%}"></span></span>'
