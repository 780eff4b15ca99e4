"""Listings: versions side by side in a table."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from kdkit.display.table import Cell, Table
from kdkit.session.history import Version


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
        return [note if len(names) == len(self.versions) else f"{', '.join(names)}: {note}" for note, names in about.items()]

    def __repr__(self) -> str:
        return "\n".join([repr(self.table), *(f"note: {remark}" for remark in self.remarks)])

    def _repr_html_(self) -> str:
        remarks = "".join(f"<li>{escape(remark)}</li>" for remark in self.remarks)
        return self.table._repr_html_() + (f"<ul>{remarks}</ul>" if remarks else "")
