"""Versions: the immutable tree of what a session made, and the history that points into it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING, Any

from kdkit.errors import KdError, did_you_mean
from kdkit.table import Cell, Table

if TYPE_CHECKING:
    from torch import nn

    from kdkit.contract import Stage
    from kdkit.measure import Report


@dataclass(frozen=True, eq=False)
class Version:
    """One node of the tree.

    Attributes:
        number: counts up within a session; `@3` names it.
        label: `@slim` names it; may be empty.
        model: what it is; None once dropped. Nothing changes it any more.
        stage: what made it of its parent; None for what was adopted or loaded.
        parent: number of the version it was made of.
        report: what was measured of it.
        traits: what is known of it.
        notes: what the stage had to say.
        seed: the stage ran with.
        inserted: the kit put this stage in as a bridge.
        origin: where it comes from, when no stage made it.
        seconds: the stage took.
        exhibits: what the stage had to show, tables and pictures; they live as long as the session, and are not saved.
    """

    number: int
    model: nn.Module | None
    report: Report
    traits: frozenset[str]
    label: str = ""
    stage: Stage | None = None
    parent: int | None = None
    notes: tuple[str, ...] = ()
    seed: int = 0
    inserted: bool = False
    origin: str = ""
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)
    exhibits: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """`@label`, or `@number` without one."""
        return f"@{self.label or self.number}"

    @property
    def made_by(self) -> str:
        """The line of its stage, or where it came from."""
        return (self.stage.line() if self.stage else self.origin) + (" (inserted)" if self.inserted else "")

    def __getitem__(self, figure: str) -> float:
        """A figure's value by name: `version["accuracy"]`."""
        return self.report[figure].value

    def __repr__(self) -> str:
        return "\n".join([f"{self.name}: {self.made_by}", *(f"  {note}" for note in self.notes), repr(self.report), *map(said, self.exhibits)])

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        head = f"<p><b>{escape(self.name)}</b> <code>{escape(self.made_by)}</code></p>"
        return "".join([head, f"<ul>{notes}</ul>" if notes else "", self.report._repr_html_(), *map(shown, self.exhibits)])


def said(exhibit: Any) -> str:
    """An exhibit as text; one that fails says so, and hides nothing else."""
    try:
        return repr(exhibit)
    except Exception as error:
        return f"an exhibit, {type(exhibit).__name__}, could not be shown: {type(error).__name__}: {error}"


def shown(exhibit: Any) -> str:
    """An exhibit as HTML; its text where it has none."""
    try:
        return str(exhibit._repr_html_()) if hasattr(exhibit, "_repr_html_") else f"<pre>{escape(said(exhibit))}</pre>"
    except Exception as error:
        return f"<pre>{escape(said(exhibit))}\n(as text, since its HTML failed: {escape(f'{type(error).__name__}: {error}')})</pre>"


@dataclass(frozen=True)
class History:
    """The tree, where the session stands in it, and what undo left. Never changed: each operation makes another one."""

    versions: Mapping[int, Version] = field(default_factory=dict)
    head: int = 0
    undone: tuple[int, ...] = ()
    next: int = 0

    def __iter__(self) -> Iterator[Version]:
        return iter(self.versions.values())

    def grown(self, made: list[Version], label: str = "") -> History:
        """With new versions, the last of which is the head and takes the label from whoever had it."""
        versions = dict(self.versions)
        if label:
            versions = {number: replace(version, label="") if version.label == label else version for number, version in versions.items()}
            made = [*made[:-1], replace(made[-1], label=label)]
        versions |= {version.number: version for version in made}
        return History(versions, made[-1].number, (), made[-1].number + 1)

    def replaced(self, version: Version) -> History:
        """With another version under the same number."""
        return replace(self, versions={**self.versions, version.number: version})

    def undo(self) -> History:
        """One step back; bridges that the kit inserted go together with what they were inserted for."""
        parent = self.versions[self.head].parent
        while parent is not None and self.versions[parent].inserted:
            parent = self.versions[parent].parent
        if parent is None:
            raise KdError(f"nothing to undo: {self.versions[self.head].name} was made by no stage")
        self.model_of(self.versions[parent])
        return replace(self, head=parent, undone=(*self.undone, self.head))

    def redo(self) -> History:
        """Back to where undo left."""
        if not self.undone:
            raise KdError("nothing to redo", "%kd undo goes back; a new stage forgets what was undone")
        return replace(self, head=self.undone[-1], undone=self.undone[:-1])

    def labelled(self, version: Version, label: str) -> History:
        """With the label on this version, and on no other."""
        versions = {number: replace(each, label="" if each.label == label else each.label) for number, each in self.versions.items()}
        return replace(self, versions=versions | {version.number: replace(version, label=label)})

    def without(self, version: Version) -> History:
        """Without this version's model; its line stays while others were made of it."""
        if version.parent is None and sum(each.parent is None for each in self) == 1:
            raise KdError(f"{version.name} can't be dropped: it is what everything is compared with", "%kd use another_model begins anew")
        head = self.head
        if head == version.number:
            if version.parent is None:
                raise KdError(f"{version.name} can't be dropped while the session stands on it", "%kd undo first")
            head = self._held(version.parent)
        versions = dict(self.versions)
        versions[version.number] = replace(version, model=None)
        while leaves := [number for number, each in versions.items() if each.model is None and not any(other.parent == number for other in versions.values())]:
            for number in leaves:
                del versions[number]
        return replace(self, versions=versions, head=head, undone=tuple(number for number in self.undone if number in versions and versions[number].model is not None))

    def _held(self, number: int | None) -> int:
        while number is not None and self.versions[number].model is None:
            number = self.versions[number].parent
        if number is None:
            raise KdError("no version would be left to stand on")
        return number

    def lineage(self, version: Version) -> list[Version]:
        """From the first to this one."""
        line = [version]
        while line[0].parent is not None:
            line.insert(0, self.versions[line[0].parent])
        return line

    def find(self, name: str | int) -> Version:
        """A version by `@label`, `@number`, `@head`, `@-1` (the one the head was made of, and so on).

        Raises:
            KdError: there is no such version.
        """
        word = str(name).removeprefix("@")
        number = int(word) if re.fullmatch("-?[0-9]+", word) else None
        for version in self:
            if version.label == word:
                return version
        if word == "head":
            return self.versions[self.head]
        if number is not None:
            line = self.lineage(self.versions[self.head])
            if -len(line) < number < 0:
                return line[number - 1]
            if number in self.versions:
                return self.versions[number]
        known = [version.name for version in self]
        raise KdError(f"no version @{word}", did_you_mean("@" + word, known), f"versions: {' '.join(known)}")

    def same(self, version: Version) -> Version:
        """The version as it stands now: its label, report or model may have changed since.

        Raises:
            KdError: it was dropped with its line, or is another session's.
        """
        found = self.find(version.number)
        if found.model is not None and version.model is not None and found.model is not version.model:
            raise KdError(f"{version.name} is a version of another session", "name one of this session, or bring it here with save and load")
        return found

    def model_of(self, version: Version) -> nn.Module:
        """The version's model.

        Raises:
            KdError: it was dropped.
        """
        if version.model is None:
            raise KdError(f"{version.name} was dropped; only its line is left", f"%kd code {version.name} shows how to make it again")
        return version.model


def checked(label: str) -> str:
    """A label that can name a version.

    Raises:
        KdError: it could be taken for something else.

    >>> checked("slim-2")
    'slim-2'
    """
    if not isinstance(label, str) or label in ("head", "best") or not re.fullmatch(r"(?!-*\d+\Z)[\w.-]+", label):
        raise KdError(f"{label!r} can't be a label", "use letters, digits, - . and _; not a number, head or best")
    return label


@dataclass(frozen=True)
class Listing:
    """Versions as a table, one a row, a column for each headline figure that any of them has.

    Attributes:
        versions: from the first row to the last.
        head: number of the version that is marked as the head.
        against: the version to whose figures each figure's ratio is told.
        caption: of the table.
        also: names of figures that are shown though they are no headlines.
    """

    versions: tuple[Version, ...]
    head: int | None = None
    against: Version | None = None
    caption: str = ""
    also: tuple[str, ...] = ()

    @property
    def figures(self) -> list[str]:
        """Names of all figures that any of the versions has, in the order of the fullest report."""
        fullest_first = sorted(self.versions, key=lambda version: -len(version.report))
        return list(dict.fromkeys(name for version in fullest_first for name in version.report))

    @property
    def table(self) -> Table:
        """The figures side by side; beside each its ratio to those of `against`."""
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

    def __repr__(self) -> str:
        return repr(self.table)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()
