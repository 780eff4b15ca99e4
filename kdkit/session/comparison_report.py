"""The result of a comparison with a control: figures of each seed, the mean difference with its interval, and the verdict."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdkit.display.page import Page, Source
from kdkit.display.table import Cell, Table, number
from kdkit.measurement.confidence import SEEDS, Interval, gap_share, t_interval, verdict


@dataclass(frozen=True)
class TrialRun:
    """One run of one of the two pipelines.

    Attributes:
        figure: the task's metric on the evaluation data; nan where it could not be measured.
        epochs: the metric on validation data after each epoch of the last training; empty without validation data.
        notes: of the stages.
    """

    figure: float
    epochs: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PairedComparison:
    """Two pipelines that start from the same version, paired by seed.

    Attributes:
        metric: name of the figure, and `better`: "higher" or "lower".
        lines: the compared pipeline and the control, as lines.
        start: name and figure of the version that both start from.
        seeds: one for each pair.
        compared, control: one run for each seed.
        reference: name and figure of a model that the compared pipeline aims at, such as its teacher; None if there is none.
        remarks: what else a reader of the figures must know.

    >>> runs = tuple(map(TrialRun, (0.75, 0.7, 0.8))), tuple(map(TrialRun, (0.5, 0.46, 0.54)))
    >>> found = PairedComparison("accuracy", "higher", ("distill soft", "tune finetune"), ("@base", 0.1), (0, 1, 2), *runs, ("teacher", 1.0))
    >>> found.verdict, found.summary()
    ('helps', 'helps: accuracy +0.25 (95 % interval +0.225 to +0.275), better in 3 of 3 seeds; 50 % of the gap to teacher recovered')
    """

    metric: str
    better: str
    lines: tuple[str, str]
    start: tuple[str, float]
    seeds: tuple[int, ...]
    compared: tuple[TrialRun, ...]
    control: tuple[TrialRun, ...]
    reference: tuple[str, float] | None = None
    remarks: tuple[str, ...] = ()

    @property
    def differences(self) -> list[float]:
        """Compared minus control, for each seed."""
        return [one - other for one, other in zip(_figures(self.compared), _figures(self.control), strict=True)]

    @property
    def gains(self) -> list[float]:
        """The differences, with a positive sign where the compared pipeline is better."""
        return [difference if self.better == "higher" else -difference for difference in self.differences]

    @property
    def interval(self) -> Interval:
        """Mean difference with its 95 % paired t interval; nan bounds for a single seed."""
        return t_interval(self.differences)

    @property
    def verdict(self) -> str:
        """See `kdkit.measurement.confidence.verdict`."""
        return verdict(self.gains)

    @property
    def gap_share(self) -> float | None:
        """The share of the gap between control and reference, of the means over the seeds."""
        if self.reference is None:
            return None
        return gap_share(statistics.fmean(_figures(self.control)), statistics.fmean(_figures(self.compared)), self.reference[1], self.better)

    def summary(self) -> str:
        """The verdict in one line."""
        found, share = self.interval, self.gap_share
        bounds = f" (95 % interval {found.low:+.3g} to {found.high:+.3g})" if found.low == found.low else ""
        wins = f", better in {sum(gain > 0 for gain in self.gains)} of {found.n} seeds" if found.n > 1 else ""
        gap = f"; {share:.0%} of the gap to {self.reference[0]} recovered".replace("%", " %") if share is not None and share > 0 and self.reference else ""
        more = f"; --seeds {SEEDS} gives an interval" if found.n == 1 else ""
        return f"{self.verdict}: {self.metric} {found.mean + 0.0:+.3g}{bounds}{wins}{gap}{more}"

    @property
    def table(self) -> Table:
        """A row each for the start, the control, the compared pipeline and the reference; means over the seeds ± standard deviation."""
        chosen = any(run.epochs for run in (*self.control, *self.compared))
        blank: list[Any] = ["", ""] if chosen else []
        rows = [[f"{self.start[0]}, the start of both", Cell(number(self.start[1])), *blank]]
        rows += [[name, _mean(runs), *(self._epochs(runs[0]) if chosen else [])] for name, runs in (("control", self.control), ("compared", self.compared))]
        rows += [[f"{self.reference[0]}, the reference", Cell(number(self.reference[1])), *blank]] if self.reference else []
        head = ["", self.metric, *(["validation, last epoch", "validation, best epoch"] if chosen else [])]
        return Table(head, rows, f"compared with a control, {len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''}")

    def _epochs(self, run: TrialRun) -> list[Cell]:
        """The last and the best epoch on validation data, of the first seed."""
        if not run.epochs:
            return [Cell(""), Cell("")]
        best = (max if self.better == "higher" else min)(run.epochs)
        return [Cell(number(run.epochs[-1])), Cell(number(best), f"epoch {run.epochs.index(best) + 1} of {len(run.epochs)}")]

    @property
    def seed_table(self) -> Table:
        """A row a seed: both figures and their difference."""
        rows = [
            [str(seed), Cell(number(other)), Cell(number(one)), Cell(f"{difference + 0.0:+.3g}")]
            for seed, other, one, difference in zip(self.seeds, _figures(self.control), _figures(self.compared), self.differences, strict=True)
        ]
        return Table(["seed", "control", "compared", "difference"], rows)

    @property
    def page(self) -> Page:
        """All of it."""
        lines = Source(f"compared:\n{_indented(self.lines[0])}\ncontrol:\n{_indented(self.lines[1])}")
        notes = [f"{name}: {note}" for name, runs in (("compared", self.compared), ("control", self.control)) for note in runs[0].notes]
        return Page(self.summary(), lines, self.table, *([self.seed_table] if len(self.seeds) > 1 else []), "\n".join([*self.remarks, *notes]))

    def __repr__(self) -> str:
        return repr(self.page)

    def _repr_html_(self) -> str:
        return self.page._repr_html_()


def _figures(runs: Sequence[TrialRun]) -> list[float]:
    return [run.figure for run in runs]


def _mean(runs: Sequence[TrialRun]) -> Cell:
    values = _figures(runs)
    return Cell(number(statistics.fmean(values)), f"± {number(statistics.stdev(values))}" if len(values) > 1 else "")


def _indented(lines: str) -> str:
    return "\n".join(f"    {line}" for line in lines.splitlines())
