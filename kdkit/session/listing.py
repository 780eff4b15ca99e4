"""Listings: versions side by side in a table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Literal, get_args

from kdkit.display.data_frame import as_dataframe
from kdkit.display.table import Cell, Table, base_value
from kdkit.display.table_text import TableText, write_csv, write_latex, write_markdown
from kdkit.errors import KdError, did_you_mean
from kdkit.measurement.report import EARLIER, EVAL
from kdkit.session.condition import Condition
from kdkit.session.history import Version

Format = Literal["markdown", "latex", "csv"]


@dataclass(frozen=True)
class Listing:
    """A table with a row for each version and a column for each headline figure that any of them has; below it, what could not be measured and why.

    Attributes:
        versions: the rows, in order.
        head: number of the version marked as the head.
        against: the version that each figure is compared with, as a ratio.
        caption: caption of the table.
        also: names of other figures to show.
    """

    versions: tuple[Version, ...]
    head: int | None = None
    against: Version | None = None
    caption: str = ""
    also: tuple[str, ...] = ()

    @property
    def figures(self) -> list[str]:
        """Names of all figures that any version has, in the order of the longest report."""
        fullest_first = sorted(self.versions, key=lambda version: -len(version.report))
        return list(dict.fromkeys(name for version in fullest_first for name in version.report))

    @property
    def table(self) -> Table:
        """The figures side by side, each with its ratio to the figure of `against`."""
        wanted = {name for version in self.versions for name, figure in version.report.items() if figure.headline} | {*self.also}
        names = [name for name in self.figures if name in wanted]
        rows = [[self._name(version), version.made_by, *(self._cell(version, name) for name in names)] for version in self.versions]
        return Table(["version", "made by", *names], rows, self.caption)

    def sorted_by(self, name: str) -> Listing:
        """The best version in a figure first; those without it come last.

        Raises:
            KdError: no version has such a figure.
        """
        self._check_figure(name, "sort")

        def rank(version: Version) -> float:
            figure = version.report[name]
            return figure.value if figure.better == "lower" else -figure.value

        ranked = sorted((version for version in self.versions if name in version.report), key=rank)
        return replace(self, versions=(*ranked, *(version for version in self.versions if name not in version.report)), also=(*self.also, name))

    def where(self, conditions: Iterable[str]) -> Listing:
        """The versions that meet all conditions, such as "size<100kB" and "accuracy>=0.9"; a version without the figure meets none.

        Raises:
            KdError: a condition can't be read, or no version has such a figure.
        """
        chosen = [Condition.read(text) for text in conditions]
        for condition in chosen:
            self._check_figure(condition.figure, "where")
        left = tuple(version for version in self.versions if all(condition.holds(version.report.get(condition.figure)) for condition in chosen))
        return replace(self, versions=left, also=(*self.also, *(condition.figure for condition in chosen)))

    def _check_figure(self, name: str, option: str) -> None:
        if name not in self.figures:
            raise KdError(f"--{option}: no version has a figure {name!r}", did_you_mean(name, self.figures), f"figures: {' '.join(self.figures)}")

    def records(self) -> list[dict[str, Any]]:
        """One row a version: number, label, line, parent, status, and each figure as a plain number in its base unit; None if it was not measured."""
        return [self._record(version) for version in self.versions]

    def _record(self, version: Version) -> dict[str, Any]:
        status = "head" if version.number == self.head else "replaced" if version.replaced_by is not None else "dropped" if version.model is None else ""
        facts = {"version": version.number, "label": version.label, "line": version.made_by, "parent": version.parent, "status": status}
        measured = {name: version.report.get(name) for name in self.figures}
        return facts | {name: None if figure is None else base_value(figure.value, figure.unit) for name, figure in measured.items()}

    def to_dataframe(self) -> Any:
        """The `records` as a pandas DataFrame.

        Raises:
            KdError: pandas is not installed.
        """
        return as_dataframe(self.records())

    def text_as(self, format: Format) -> TableText:
        """The table as text to copy: `markdown` and `latex` as it is shown, `csv` with the `records`.

        Raises:
            KdError: there is no such format.
        """
        if format == "csv":
            records = self.records()
            return write_csv(list(records[0]) if records else [], [list(record.values()) for record in records])
        if format not in get_args(Format):
            raise KdError(f"there is no table format {format!r}", f"formats: {' '.join(get_args(Format))}")
        return write_markdown(self.table) if format == "markdown" else write_latex(self.table)

    def _name(self, version: Version) -> str:
        return version.name + (" *" if version.number == self.head else "")

    def _cell(self, version: Version, name: str) -> Any:
        figure = version.report.get(name)
        if figure is None:
            return ""
        other = self.against.report.get(name) if self.against and self.against is not version else None
        return Cell(figure.text(), figure.against(other) if other is not None else "")

    @property
    def remarks(self) -> list[str]:
        """The notes of the reports, each once, with the versions that it is about where it is not about all."""
        about: dict[str, list[str]] = {}
        for version in self.versions:
            for note in version.report.notes:
                about.setdefault(note, []).append(version.name)
            if note := self._on_data(version):
                about.setdefault(note, []).append(version.name)
        return [note if len(names) == len(self.versions) else f"{', '.join(names)}: {note}" for note, names in about.items()]

    def _on_data(self, version: Version) -> str:
        """A remark on figures that can't be compared with those of other versions, because of the data; empty if all can."""
        if any(figure.data == EARLIER for figure in version.report.values()):
            return f"measured on evaluation data that were replaced since; %kd eval {version.name} measures it again"
        has_data = any(figure.data == EVAL for each in self.versions for figure in each.report.values())
        is_measured = any(figure.data for figure in version.report.values()) or any(" was not measured" in note for note in version.report.notes)
        return "" if not has_data or is_measured or version.model is None else f"measured before there were evaluation data; %kd eval {version.name} measures it again"

    def __repr__(self) -> str:
        return "\n".join([repr(self.table), *(f"note: {remark}" for remark in self.remarks)])

    def _repr_html_(self) -> str:
        remarks = "".join(f"<li>{escape(remark)}</li>" for remark in self.remarks)
        return self.table._repr_html_() + (f"<ul>{remarks}</ul>" if remarks else "")
