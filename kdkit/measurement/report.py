"""The figures of a version, with unit, backend and ratio to the original."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from html import escape
from typing import Any

from kdkit.display.data_frame import as_dataframe
from kdkit.display.table import Cell, Table, base_unit, base_value, number, volatile
from kdkit.errors import KdError, describe_exception, printable

EVAL, EARLIER, OTHER_DATA = "eval", "earlier eval", "other data"
"""Names of data: a session's evaluation data, those that it had before, and data for one measurement."""

DETAILS = "times are medians (p50); spread: the distance of their quartiles, as a share of the median"


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        name: such as "accuracy" or "latency".
        value: the number, in `unit`.
        unit: "B", "ms", "J", "items/s", or "" for counts and qualities.
        better: "higher" or "lower".
        backend: the backend that ran the model.
        simulated: whether it is the value that the final model would have.
        n: number of evaluated items or timed calls.
        data: name of the data that it was measured on; empty for other figures.
        total: how many items these data have, if only a sample was evaluated.
        margin: half the width of the 95 % confidence interval of a sample's figure.
        ratio: ratio to the original model's figure, if both were measured in turn; 1 for the original itself.
        reference: backend on which the original was measured for that.
        spread: how far apart repeated measurements were: the distance of their quartiles, as a share of their median.
        threads: how many threads computed, of a time.
        disturbed: whether the measurement was unsteady, also when it was repeated.
        headline: whether tables of versions show it; other figures are only in the version's report.

    >>> Figure("size", 370_123, "B", "lower").text()
    '370 kB'
    """

    name: str
    value: float
    unit: str = ""
    better: str = "higher"
    backend: str = ""
    simulated: bool = False
    n: int | None = None
    ratio: float | None = None
    headline: bool = True
    reference: str = ""
    spread: float | None = None
    threads: int | None = None
    disturbed: bool = False
    data: str = ""
    total: int | None = None
    margin: float | None = None

    @property
    def steady(self) -> bool:
        """Whether another measurement gives the same value; times, energies and memory differ from run to run."""
        return self.name != "memory" and self.unit not in ("ns", "us", "ms", "s", "J", "mJ", "W", "items/s", "tokens/s")

    def text(self) -> str:
        """The number with its unit and margin, marked if it is disturbed ("~") or simulated; "…" while `KDKIT_STABLE=1` if it is not steady."""
        margin = "" if self.margin is None else f" ±{self.margin:.2g}"
        return self._shown("~" * self.disturbed + number(self.value, self.unit)) + margin + " simulated" * self.simulated

    def against(self, other: Figure) -> str:
        """Compare with another figure of the same name: a difference for a quality, a factor for a cost; "" if the other is 0.

        >>> Figure("accuracy", 0.94).against(Figure("accuracy", 0.95)), Figure("size", 1, "B", "lower").against(Figure("size", 4, "B", "lower"))
        ('-0.01', 'x0.25')
        """
        if not self.unit and self.better == "higher":
            return f"{self.value - other.value:+.3g}"
        return self._shown(_factor(self.value / other.value)) if other.value else ""

    def _shown(self, text: str) -> str:
        return text if self.steady else volatile(text)


def _factor(ratio: float) -> str:
    return f"x{ratio:.3g}"


@dataclass(frozen=True, repr=False)
class Report(Mapping[str, Figure]):
    """The measured figures of a version, by name and in order.

    Attributes:
        figures: the figures, with unique names.
        notes: what could not be measured and why.
        load: a note on what disturbed the timing; empty on a quiet machine.

    >>> Report((Figure("accuracy", 0.9512, n=1000), Figure("size", 370_123, "B", "lower")))
    figure     value     n
    accuracy   0.951  1000
    size      370 kB
    """

    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    load: str = ""

    def __getitem__(self, name: str) -> Figure:
        for figure in self.figures:
            if figure.name == name:
                return figure
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (figure.name for figure in self.figures)

    def __len__(self) -> int:
        return len(self.figures)

    def with_quality(self, other: Report, measures: Collection[str]) -> Report:
        """This report with the figures on evaluation data that another one has, and its notes on them.

        Args:
            other: holds only such figures.
            measures: names of the measures that gave them.
        """
        kept = [figure for figure in self.figures if not figure.data and figure.name not in other]
        notes = [note for note in self.notes if not note.startswith(tuple(f"{name} was not measured" for name in measures)) and note not in other.notes]
        return replace(self, figures=(*other.figures, *kept), notes=(*other.notes, *notes))

    def as_data(self) -> dict[str, Any]:
        """The report as plain JSON data."""
        return {"figures": [asdict(figure) for figure in self.figures], "notes": list(self.notes), "load": self.load}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Report:
        """The report that `as_data` wrote; fields of a newer kdkit are ignored.

        Raises:
            KdError: the data is not a report.
        """
        known = {item.name for item in fields(Figure)}
        try:
            figures = tuple(Figure(**{key: value for key, value in item.items() if key in known}) for item in data["figures"])
            return cls(figures, tuple(data.get("notes", ())), data.get("load", ""))
        except (KeyError, TypeError, AttributeError) as error:
            raise KdError(f"this is not a report: {describe_exception(error)}", "measure the version again with %kd eval") from error

    @property
    def table(self) -> Table:
        """One row per figure; simulated figures are in a separate column."""
        columns: dict[str, list[Any]] = {
            "figure": [figure.name for figure in self.figures],
            "value": [None if figure.simulated else Cell(figure.text()) for figure in self.figures],
            "simulated": [Cell(replace(figure, simulated=False).text()) if figure.simulated else "" for figure in self.figures],
            "n": ["" if figure.n is None else Cell(figure._shown(str(figure.n)) + (f" of {figure.total}" if figure.total else "")) for figure in self.figures],
            "data": [figure.data if figure.data not in ("", EVAL) else "" for figure in self.figures],
        }
        kept = {name: cells for name, cells in columns.items() if name in ("figure", "value") or any(cell != "" for cell in cells)}
        return Table(list(kept), list(zip(*kept.values(), strict=True)))

    def records(self) -> list[dict[str, Any]]:
        """One row a figure: its name, its value in the base unit, unit, and how it was measured."""
        return [
            {
                "figure": figure.name,
                "value": base_value(figure.value, figure.unit),
                "unit": base_unit(figure.unit),
                **{name: getattr(figure, name) for name in ("better", "backend", "simulated", "n", "data", "total", "margin", "ratio", "spread", "threads", "disturbed")},
            }
            for figure in self.figures
        ]

    def to_dataframe(self) -> Any:
        """The `records` as a pandas DataFrame.

        Raises:
            KdError: pandas is not installed.
        """
        return as_dataframe(self.records())

    @property
    def details(self) -> Table:
        """One row per figure: its value, on which data, how often it was measured, on which backend, and how far apart repeated measurements were."""
        rows = [
            [
                figure.name,
                Cell(figure.text()),
                figure.data,
                Cell("" if figure.n is None else figure._shown(str(figure.n))),
                figure.backend,
                Cell("" if figure.spread is None else figure._shown(f"{figure.spread:.0%}")),
                Cell("" if figure.threads is None else figure._shown(str(figure.threads))),
            ]
            for figure in self.figures
        ]
        return Table(["figure", "value", "data", "n", "backend", "spread", "threads"], rows, DETAILS)

    def _remarks(self) -> list[str]:
        return [*self.notes, *([self.load] if self.load and volatile(self.load) == self.load else [])]

    def __repr__(self) -> str:
        return "\n".join([repr(self.table), *(f"note: {printable(remark)}" for remark in self._remarks())])

    def _repr_html_(self) -> str:
        """The main figures and the notes; all figures and how they were measured are folded."""
        remarks = "".join(f"<li>{escape(remark)}</li>" for remark in self._remarks())
        main = replace(self, figures=tuple(figure for figure in self.figures if figure.headline) or self.figures)
        folded = f"<details><summary>All figures, and how they were measured</summary>{self.details._repr_html_()}</details>" if self.figures else ""
        return main.table._repr_html_() + (f"<ul>{remarks}</ul>" if remarks else "") + folded
