"""The comparison: pairs of distilled student and control, what was gained, and whether that is more than chance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdkit.table import Cell, Table, number
from kdkit_distill.evaluation import best


def gains(control: Sequence[float], distilled: Sequence[float], better: str) -> list[float]:
    """What each pair gained, positive where distilling was better.

    >>> gains([0.5, 0.5], [0.75, 0.25], "higher"), gains([2.0], [1.5], "lower")
    ([0.25, -0.25], [0.5])
    """
    sign = 1.0 if better == "higher" else -1.0
    return [sign * (two - one) for one, two in zip(control, distilled, strict=True)]


def spread(values: Sequence[float]) -> float:
    """The sample standard deviation; nan of a single value.

    >>> spread([1.0, 3.0]), spread([1.0])
    (1.4142135623730951, nan)
    """
    return statistics.stdev(values) if len(values) > 1 else math.nan


def gap_recovered(control: float, distilled: float, teacher: float, better: str) -> float | None:
    """(distilled - control) / (teacher - control); None where the teacher is no better than the control.

    >>> gap_recovered(0.5, 0.75, 1.0, "higher"), gap_recovered(0.9, 0.8, 0.7, "higher"), gap_recovered(4.0, 3.0, 2.0, "lower")
    (0.5, None, 0.5)
    """
    gap = gains([control], [teacher], better)[0]
    return gains([control], [distilled], better)[0] / gap if gap > 0 else None


def verdict(gained: Sequence[float]) -> str:
    """ "helps" or "hurts" where all seeds are on one side and their mean is beyond one standard deviation; else "no effect".

    A single seed gives no verdict, and neither do figures that are not finite.

    >>> verdict([0.02, 0.03, 0.01]), verdict([0.02, -0.01, 0.03]), verdict([-0.02, -0.03])
    ('helps', 'no effect', 'hurts')
    >>> verdict([0.1, 0.001, 0.001]), verdict([0.05]), verdict([0.0, 0.0])
    ('no effect', 'one seed tells little', 'no effect')
    """
    if len(gained) < 2:
        return "one seed tells little"
    if not all(map(math.isfinite, gained)):
        return "no verdict"
    mean = statistics.fmean(gained)
    if abs(mean) <= spread(gained):
        return "no effect"
    return "helps" if all(gain > 0 for gain in gained) else "hurts" if all(gain < 0 for gain in gained) else "no effect"


@dataclass(frozen=True)
class Run:
    """One training of a pair.

    Attributes:
        figure: on the session's eval data, of the weights that were kept.
        epochs: the figure on validation data after each epoch; empty without such data.
    """

    figure: float
    epochs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Pairs of distilled and control, and what follows from them.

    Attributes:
        metric: whose figures these are, and `better`: "higher" or "lower".
        before: the student's figures before training, one a seed.
        control, distilled: one a seed.
        teacher: its figure; None where it could not be had.
        remarks: what else must be known to read the figures.

    >>> found = Comparison("accuracy", "higher", (0.1, 0.1), (Run(0.5), Run(0.5)), (Run(0.75), Run(0.625)), 1.0)
    >>> found.lines()[0]
    'helps: accuracy +0.188 ± 0.0884 over the control in 2 of 2 seeds; 38 % of the gap to the teacher recovered'
    """

    metric: str
    better: str
    before: Sequence[float]
    control: Sequence[Run]
    distilled: Sequence[Run]
    teacher: float | None = None
    remarks: Sequence[str] = field(default=())

    @property
    def gains(self) -> list[float]:
        """Of each pair, positive where distilling was better."""
        return gains(_figures(self.control), _figures(self.distilled), self.better)

    @property
    def recovered(self) -> float | None:
        """The share of the gap between control and teacher, of the seeds' means."""
        one, two = statistics.fmean(_figures(self.control)), statistics.fmean(_figures(self.distilled))
        return None if self.teacher is None else gap_recovered(one, two, self.teacher, self.better)

    @property
    def verdict(self) -> str:
        """See the function of this name."""
        return verdict(self.gains)

    @property
    def table(self) -> Table:
        """A row each for the student before, the control, the distilled student and the teacher; means over the seeds ± sd."""
        chosen = any(run.epochs for run in (*self.control, *self.distilled))
        head = ["", self.metric, *(["validation, last epoch", "validation, best epoch"] if chosen else [])]
        blank: list[Any] = ["", ""] if chosen else []
        rows = [["student before", _cell(self.before), *blank], ["control, labels alone", _cell(_figures(self.control)), *(self._epochs(self.control) if chosen else [])]]
        rows += [["distilled", _cell(_figures(self.distilled)), *(self._epochs(self.distilled) if chosen else [])]]
        rows += [["teacher", Cell(number(self.teacher)), *blank]]
        seeds = len(self.control)
        return Table(head, rows, f"distilled against control, {seeds} seed{'s' if seeds > 1 else ''}")

    def _epochs(self, runs: Sequence[Run]) -> list[Cell]:
        """The last and the best epoch on validation data, of the first seed, whose student is kept."""
        epochs = runs[0].epochs
        if not epochs:
            return [Cell(""), Cell("")]
        chosen = best(epochs, self.better)
        return [Cell(number(epochs[-1])), Cell(number(epochs[chosen]), f"epoch {chosen + 1} of {len(epochs)}")]

    def lines(self) -> list[str]:
        """The verdict, and what must be known to read it."""
        gained, count = self.gains, len(self.gains)
        mean = statistics.fmean(gained)
        sign = 1 if self.better == "higher" else -1
        told = f"{self.metric} {sign * mean + 0.0:+.3g}" + (f" ± {spread(gained):.3g}" if count > 1 else "") + " over the control"
        wins = f" in {sum(gain > 0 for gain in gained)} of {count} seeds" if count > 1 else ""
        share = "" if self.recovered is None or self.recovered <= 0 else f"; {round(self.recovered, 2) + 0.0:.0%} of the gap to the teacher recovered".replace("%", " %")
        first = f"{self.verdict}: {told}{wins}{share}"
        return [first if count > 1 else f"{first}; --seeds 3 tells more", *self.remarks]

    def __repr__(self) -> str:
        return "\n".join([repr(self.table), *self.lines()])

    def _repr_html_(self) -> str:
        from html import escape

        return self.table._repr_html_() + "".join(f"<p>{escape(line)}</p>" for line in self.lines())


def _figures(runs: Iterable[Run]) -> list[float]:
    return [run.figure for run in runs]


def _cell(values: Sequence[float]) -> Cell:
    return Cell(number(statistics.fmean(values)), f"± {number(spread(values))}" if len(values) > 1 else "")
