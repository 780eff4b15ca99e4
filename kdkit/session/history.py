"""Versions, and the history: an immutable tree of them with a position in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING, Any

from kdkit.display.attachments import as_html, as_text
from kdkit.display.table import number as in_digits
from kdkit.display.table import volatile
from kdkit.errors import KdError, did_you_mean, printable, printable_lines
from kdkit.measurement.change import Change
from kdkit.renaming import renamed_property

if TYPE_CHECKING:
    from torch import nn

    from kdkit.measurement.report import Report
    from kdkit.models.stored_form import Storage
    from kdkit.stages.stage import Stage


TRIAL = "trial"
"""The label of a version that `Session.trial` made and that is not in the history."""


@dataclass(frozen=True)
class Reference:
    """A version that another one is compared with: its name and report."""

    name: str
    report: Report


@dataclass(frozen=True, eq=False)
class Version:
    """One node of the tree.

    Attributes:
        number: unique in a session, increasing; `@3` refers to the version.
        label: `@slim` refers to the version; may be empty.
        model: the model, which never changes; None once the version was dropped.
        stage: the stage that made it from its parent; None if the model was given or loaded.
        parent: number of the version that it was made from.
        report: the figures measured.
        traits: known facts about the model.
        notes: notes of the stage.
        seed: seed of the stage.
        inserted: whether kdkit inserted the stage as a bridge.
        origin: where the model comes from, if no stage made it.
        seconds: run time of the stage and its bridges, with their export and without measuring.
        export_seconds: of these, the time in which models were exported.
        measuring_seconds: time in which the result was measured.
        facts: what the folder that it was loaded from states about it.
        attachments: tables and charts of the stage; they live as long as the session and are not saved.
        renamed: old -> new name of each layer that the stage renamed.
        storage: the codec that encodes its weights when it is saved; None: they are saved as plain tensors.
        start: number of the version that the run which made it started from; None if no run made it.
        replaced_by: number of the version that a later run made in its place; None while it is the current one.
        mark: how a later run outdated it: "the old @slim", or "on the old @slim".
        session_notes: notes on its place in the session; they are not saved.
        compared: the last version before it that a line of the user made, and the first version.
        marks: warnings about its figures.
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
    export_seconds: float = 0.0
    measuring_seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)
    attachments: tuple[Any, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    storage: Storage | None = None
    start: int | None = None
    replaced_by: int | None = None
    mark: str = ""
    session_notes: tuple[str, ...] = ()
    compared: tuple[Reference, ...] = ()
    marks: tuple[str, ...] = ()

    exhibits = renamed_property("exhibits", "attachments")

    @property
    def name(self) -> str:
        """`@label`, or `@number` without one."""
        return f"@{self.label or self.number}"

    @property
    def made_by(self) -> str:
        """The line of its stage, or its origin, and what a later run outdated."""
        remarks = ["inserted"] * self.inserted + [self.mark] * bool(self.mark)
        return (self.stage.line() if self.stage else printable(self.origin)) + (f" ({', '.join(remarks)})" if remarks else "")

    def __getitem__(self, figure: str) -> float:
        """A figure's value by name: `version["accuracy"]`."""
        return self.report[figure].value

    @property
    def times(self) -> dict[str, float]:
        """Seconds of its step's own work, of its export and of its measuring."""
        return {"work": self.seconds - self.export_seconds, "export": self.export_seconds, "measuring": self.measuring_seconds}

    @property
    def changes(self) -> dict[str, Change]:
        """What became better and worse, by the name of the version that it is compared with."""
        return {each.name: Change(each.report, self.report) for each in self.compared}

    @property
    def sentences(self) -> list[str]:
        """The changes as sentences, and warnings."""
        found = [(name, str(change), change.slowdown) for name, change in self.changes.items()]
        slower = [f"{volatile(f'{factor:.3g}x')} slower than {name}" for name, _, factor in found if factor > 1 and volatile("") == ""]
        return [*(f"against {name}: {text}" for name, text, _ in found if text), *(f"! {mark}" for mark in (*self.marks, *slower))]

    def __repr__(self) -> str:
        return "\n".join(
            [
                printable_lines(f"{self.name}: {self.made_by}"),
                *(f"  {printable(line)}" for line in (*self.sentences, *self.notes, *self.session_notes)),
                repr(self.report),
                *map(as_text, self.attachments),
            ]
        )

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{escape(note)}</li>" for note in (*self.notes, *self.session_notes))
        head = f"<p><b>{escape(self.name)}</b> <code>{escape(self.made_by)}</code></p>"
        head += "".join(f"<p>{escape(sentence)}</p>" for sentence in self.sentences)
        return "".join([head, f"<ul>{notes}</ul>" if notes else "", self.report._repr_html_(), self._times_html(), *map(as_html, self.attachments)])

    def _times_html(self) -> str:
        """The times of its step, folded."""
        if self.stage is None:
            return ""
        told = " · ".join(f"{name} {in_digits(seconds, 's')}" for name, seconds in self.times.items())
        return f"<details><summary>Times of this step</summary><p>{volatile(told)}</p></details>"


@dataclass(frozen=True)
class History:
    """The versions, which of them is the head, and what was undone. Immutable: each operation returns a new history."""

    versions: Mapping[int, Version] = field(default_factory=dict)
    head: int = 0
    undone: tuple[int, ...] = ()
    next: int = 0

    def __iter__(self) -> Iterator[Version]:
        return iter(self.versions.values())

    def grown(self, made: list[Version], label: str = "") -> History:
        """With new versions; the last one becomes the head and gets the label, which another version then loses."""
        versions = dict(self.versions)
        if label:
            versions = {number: replace(version, label="") if version.label == label else version for number, version in versions.items()}
            made = [*made[:-1], replace(made[-1], label=label)]
        versions |= {version.number: version for version in made}
        return History(versions, made[-1].number, (), made[-1].number + 1)

    def succeeded(self, old: Sequence[Version], made: Sequence[Version]) -> History:
        """With the versions of a new run in place of those of an earlier one; the last one becomes the head.

        Old versions on which others are built are kept and marked, as are the others; the rest is gone, and so are versions that were
        kept only because of them.

        Args:
            old: the versions of the earlier run, in order.
            made: the new versions, in order, with their labels.
        """
        labels = {version.label for version in made if version.label}
        before = {version.number: version for version in old}
        successors = {number: successor(version, made).number for number, version in before.items()}
        versions: dict[int, Version] = {}
        for number, version in self.versions.items():
            later = successors.get(version.replaced_by, version.replaced_by) if number not in before else successors[number]  # type: ignore[arg-type]
            mark = version.mark or self._mark(version, before, old[-1])
            versions[number] = replace(version, label="" if version.label in labels else version.label, replaced_by=later, mark=mark)
        versions |= {version.number: version for version in made}
        while gone := [number for number, version in versions.items() if version.replaced_by is not None and not version.label and not _is_parent(number, versions)]:
            for number in gone:
                del versions[number]
        return History(versions, made[-1].number, (), made[-1].number + 1)

    def _mark(self, version: Version, old: Mapping[int, Version], last: Version) -> str:
        """How replacing the versions of a run outdates a version."""
        if version.number in old:
            return f"the old {version.name}" if version.label else f"of the old {last.name}"
        nearest = next((each for each in reversed(self.lineage(version)) if each.number in old), None)
        return "" if nearest is None else f"on the old {nearest.name}"

    def replaced(self, version: Version) -> History:
        """With a version in place of the one with the same number."""
        return replace(self, versions={**self.versions, version.number: version})

    def reported(self, change: Callable[[Report], Report]) -> History:
        """With every report changed, of those that `change` does not return as they are."""
        return self._each(lambda version: version if (report := change(version.report)) is version.report else replace(version, report=report))

    def compared(self, marks_of: Callable[[Version], tuple[str, ...]]) -> History:
        """With what each version is compared with, and the marks that follow from it."""

        others = self._references()

        def change(version: Version) -> Version:
            known, found = version.compared, others[version.number]
            if [(each.name, id(each.report)) for each in known] != [(each.name, id(each.report)) for each in found]:
                version = replace(version, compared=found)
            marks = marks_of(version)
            return version if marks == version.marks else replace(version, marks=marks)

        return self._each(change)

    def _references(self) -> dict[int, tuple[Reference, ...]]:
        """For each version the last one before it that a line of the user made, and the first of its line."""
        first: dict[int, Version] = {}
        written: dict[int, Version] = {}
        for number, version in sorted(self.versions.items()):  # a version's number is above its parent's
            if version.parent is None:
                first[number] = version
                continue
            parent = self.versions[version.parent]
            first[number], written[number] = first[parent.number], written.get(parent.number, parent) if parent.inserted else parent
        chosen = {number: {each.number: each for each in (written[number], first[number])} if number in written else {} for number in self.versions}
        return {number: tuple(Reference(each.name, each.report) for each in named.values()) for number, named in chosen.items()}

    def _each(self, change: Callable[[Version], Version]) -> History:
        """With every version changed; itself if none is."""
        versions = {number: change(version) for number, version in self.versions.items()}
        return self if all(version is self.versions[number] for number, version in versions.items()) else replace(self, versions=versions)

    def undo(self) -> History:
        """With the head one stage back; bridges are undone together with the stage that they were inserted for."""
        parent = self.versions[self.head].parent
        while parent is not None and self.versions[parent].inserted:
            parent = self.versions[parent].parent
        if parent is None:
            raise KdError(f"nothing to undo: {self.versions[self.head].name} was made by no stage")
        self.model_of(self.versions[parent])
        return replace(self, head=parent, undone=(*self.undone, self.head))

    def redo(self) -> History:
        """With the head where it was before the last undo."""
        if not self.undone:
            raise KdError("nothing to redo", "%kd undo goes back; running a stage clears what was undone")
        return replace(self, head=self.undone[-1], undone=self.undone[:-1])

    def labelled(self, version: Version, label: str) -> History:
        """With the label on this version and on no other."""
        versions = {number: replace(each, label="" if each.label == label else each.label) for number, each in self.versions.items()}
        return replace(self, versions=versions | {version.number: replace(version, label=label)})

    def without(self, version: Version) -> History:
        """Without this version's model; its line remains while other versions were made from it."""
        if version.parent is None and sum(each.parent is None for each in self) == 1:
            raise KdError(f"{version.name} can't be dropped: it is the reference for all others", "%kd use another_model starts a new session")
        head = self.head
        if head == version.number:
            if version.parent is None:
                raise KdError(f"{version.name} can't be dropped while it is the head", "%kd undo first")
            head = self._held(version.parent)
        versions = dict(self.versions)
        versions[version.number] = replace(version, model=None)
        while leaves := [number for number, each in versions.items() if each.model is None and not any(other.parent == number for other in versions.values())]:
            for number in leaves:
                del versions[number]
        return replace(self, versions=versions, head=head, undone=tuple(number for number in self.undone if number in versions and versions[number].model is not None))

    def restored(self, versions: Sequence[Version], head: int | None = None) -> History:
        """With versions that were removed; a label that another version has by now stays there.

        Args:
            versions: those removed, in any order; the model of one may be None.
            head: the new head; None: it stays.
        """
        taken = {version.label for version in self if version.label} - {version.label for version in versions if version.number in self.versions}
        back = {version.number: replace(version, label="" if version.label in taken else version.label) for version in versions}
        return replace(self, versions=dict(sorted((dict(self.versions) | back).items())), head=self.head if head is None else head)

    def _held(self, number: int | None) -> int:
        while number is not None and self.versions[number].model is None:
            number = self.versions[number].parent
        if number is None:
            raise KdError("no version would be left")
        return number

    def lineage(self, version: Version) -> list[Version]:
        """The versions from the first to this one, each made from the one before."""
        line = [version]
        while line[0].parent is not None:
            line.insert(0, self.versions[line[0].parent])
        return line

    def find(self, name: str | int) -> Version:
        """A version by `@label`, `@number`, `@head`, `@-1` (the parent of the head, and so on).

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
        """The current state of a version: its label, report or model may have changed since.

        Raises:
            KdError: its line was dropped, or it belongs to another session.
        """
        if version.label == TRIAL and all(version is not each and version.model is not each.model for each in self):
            raise KdError("a trial is not kept as a version of the session", "run its stages: session.run(...)")
        found = self.find(version.number)
        if found.model is not None and version.model is not None and found.model is not version.model:
            raise KdError(f"{version.name} is a version of another session", "choose one of this session, or save it there and load it here")
        return found

    def model_of(self, version: Version) -> nn.Module:
        """The version's model.

        Raises:
            KdError: it was dropped.
        """
        if version.model is None:
            raise KdError(f"{version.name} was dropped; only its line is left", f"%kd code {version.name} shows how to make it again")
        return version.model


def successor(version: Version, made: Sequence[Version]) -> Version:
    """The new version that takes the place of an old one: that of the same label, or else the last one."""
    return next((each for each in made if each.label and each.label == version.label), made[-1])


def _is_parent(number: int, versions: Mapping[int, Version]) -> bool:
    return any(version.parent == number for version in versions.values())


def checked(label: str) -> str:
    """Check that a label can name a version.

    Raises:
        KdError: it can't.

    >>> checked("slim-2")
    'slim-2'
    """
    if not isinstance(label, str) or label in ("head", "best") or not re.fullmatch(r"(?!-*\d+\Z)[\w.-]+", label):
        raise KdError(f"{label!r} can't be a label", "use letters, digits, - . and _; not a number, head or best")
    return label
