"""The Pareto frontier: versions that no other version beats in both quality and cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from kdkit.display.charts import Mark, scatter_chart
from kdkit.display.table import Cell, Table, volatile
from kdkit.errors import KdError, did_you_mean
from kdkit.measurement.report import Figure
from kdkit.session.history import Version
from kdkit.session.listing import Listing

FRONTIER = "on the frontier"
SIMULATED = "simulated"
_GROUPS = (FRONTIER, "behind another", SIMULATED)


@dataclass(frozen=True)
class Point:
    """A version in the chart.

    Attributes:
        name: of the version.
        quality, cost: its figures.
        behind: the version that beats it, at least as good in both figures and better in one; "" if none does.
    """

    name: str
    quality: Figure
    cost: Figure
    behind: str = ""

    @property
    def simulated(self) -> bool:
        """Whether a figure is simulated, so that the gain is not real yet."""
        return self.quality.simulated or self.cost.simulated

    @property
    def verdict(self) -> str:
        """Its place relative to the frontier, in words."""
        return SIMULATED if self.simulated else f"behind {self.behind}" if self.behind else FRONTIER

    @property
    def group(self) -> int:
        """Its place relative to the frontier, as the number of a group in the chart."""
        return 2 if self.simulated else 1 if self.behind else 0

    @property
    def steady(self) -> bool:
        """Whether both figures are reproducible, so that it has the same place the next time."""
        return self.quality.steady and self.cost.steady

    def beats(self, other: Point) -> bool:
        """Whether it is at least as good in both figures, and better in one."""
        mine, theirs = self._losses(), other._losses()
        return mine != theirs and all(one <= two for one, two in zip(mine, theirs, strict=True))

    def _losses(self) -> tuple[float, float]:
        """Cost and quality, with signs such that less is better."""
        first, second = ((figure.value if figure.better == "lower" else -figure.value) for figure in (self.cost, self.quality))
        return first, second


@dataclass(frozen=True, repr=False)
class ParetoFrontier:
    """Versions by quality and cost, and the frontier of those that no other version beats.

    A version with simulated figures is shown, but beats no other and is not on the frontier.

    Attributes:
        quality, cost: names of the figures.
        points: the versions that have both, the cheapest first.
        lacking: versions without a point, and why.

    >>> report = lambda accuracy, size: (Figure("accuracy", accuracy), Figure("size", size, "B", "lower"))
    >>> ParetoFrontier.of("accuracy", "size", [("@base", *report(0.9, 9000)), ("@slim", *report(0.9, 4000)), ("@tiny", *report(0.8, 1000))])
    2 of 3 versions are on the frontier of accuracy against size
    version  size  accuracy  verdict
    @tiny    1 kB       0.8  on the frontier
    @slim    4 kB       0.9  on the frontier
    @base    9 kB       0.9  behind @slim
    """

    quality: str
    cost: str
    points: tuple[Point, ...] = ()
    lacking: tuple[str, ...] = ()

    @classmethod
    def of(cls, quality: str, cost: str, figures: Sequence[tuple[str, Figure, Figure]], lacking: Sequence[str] = ()) -> ParetoFrontier:
        """From (name, quality, cost) of each version."""
        points = sorted((Point(*each) for each in figures), key=Point._losses)
        real = [point for point in points if not point.simulated]
        best: list[Point] = []
        for point in real:
            if not any(other.beats(point) for other in best[-1:]):
                best.append(point)
        return cls(quality, cost, tuple(_placed(point, best) for point in points), tuple(lacking))

    @property
    def frontier(self) -> tuple[Point, ...]:
        """The points that no other point beats, the cheapest first."""
        return tuple(point for point in self.points if point.verdict == FRONTIER)

    @property
    def summary(self) -> str:
        """One line."""
        what = f"of {self.quality} against {self.cost}"
        if not self.points:
            return f"no version is on a frontier {what}"
        return f"{self._steadily(str(len(self.frontier)))} of {len(self.points)} versions are on the frontier {what}"

    @property
    def table(self) -> Table:
        """A row for each version."""
        rows = [[point.name, Cell(point.cost.text()), Cell(point.quality.text()), self._steadily(point.verdict)] for point in self._listed()]
        return Table(["version", self.cost, self.quality, "verdict"], rows)

    def _listed(self) -> list[Point]:
        """In an order that is reproducible, where outputs are compared."""
        return list(self.points) if self._steadily(" ") == " " else sorted(self.points, key=lambda point: point.name)

    def _steadily(self, text: str) -> str:
        return text if all(point.steady for point in self.points) else volatile(text)

    @property
    def chart(self) -> str:
        """The picture, as SVG."""
        first = next(iter(self.points), None)
        ways = {name: f"{name} ({figure.better} is better)" for name, figure in ((self.cost, first.cost), (self.quality, first.quality))} if first else {}
        # those on the frontier have the first right to a name beside them, and Tab meets them first
        ordered = sorted(self.points, key=lambda point: point.group)
        marks = [Mark(point.name, point.cost.value, point.quality.value, self._said(point), point.group) for point in ordered]
        stairs = [(point.cost.value, point.quality.value) for point in self.frontier]
        units = (first.cost.unit, first.quality.unit) if first else ("", "")
        return scatter_chart(marks, f"{self.quality} against {self.cost}", ways.get(self.cost, ""), ways.get(self.quality, ""), _GROUPS, stairs, units)

    def _said(self, point: Point) -> str:
        return f"{point.name}: {self.cost} {point.cost.text()}, {self.quality} {point.quality.text()}, {point.verdict}"

    def __repr__(self) -> str:
        return "\n".join([self.summary, *([repr(self.table)] if self.points else []), *(f"note: {each}" for each in self.lacking)])

    def _repr_html_(self) -> str:
        lacking = "".join(f"<li>{escape(each)}</li>" for each in self.lacking)
        shown = self._steadily(f"<div>{self.chart}</div>") if self.points else ""
        return f"<p>{escape(self.summary)}</p>{shown}{self.table._repr_html_() if self.points else ''}" + (f"<ul>{lacking}</ul>" if lacking else "")


def _placed(point: Point, best: Sequence[Point]) -> Point:
    behind = next((other.name for other in best if other.beats(point)), "")
    return Point(point.name, point.quality, point.cost, behind)


def pareto_frontier(versions: Sequence[Version], quality: str, cost: str) -> ParetoFrontier:
    """The frontier of versions by two figures of their reports.

    Raises:
        KdError: no version has a figure of that name.
    """
    known = Listing(tuple(versions)).figures
    for name in (quality, cost):
        if name not in known:
            raise KdError(f"no version has a figure {name!r}", did_you_mean(name, known), f"figures: {' '.join(known) or 'none'}")
    having = [version for version in versions if quality in version.report and cost in version.report]
    lacking = [
        f"{version.name} has no figure {' or '.join(name for name in (quality, cost) if name not in version.report)}" for version in versions if version not in having
    ]
    return ParetoFrontier.of(quality, cost, [(version.name, version.report[quality], version.report[cost]) for version in having], lacking)
