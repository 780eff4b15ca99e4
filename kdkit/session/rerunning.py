"""Running again: which versions a new run takes the place of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdkit.errors import KdError
from kdkit.session.history import History, Version, successor


@dataclass(frozen=True)
class EarlierRun:
    """Versions that a new run takes the place of.

    Attributes:
        start: the version that the new run starts from.
        versions: those to replace, in order, with the bridges that were inserted.
    """

    start: Version
    versions: tuple[Version, ...]

    @property
    def lines(self) -> tuple[Version, ...]:
        """The versions that a line of the user made, without bridges."""
        return tuple(each for each in self.versions if each.stage is not None and not each.inserted)


def earlier_run(history: History, label: str, on: Version | None) -> EarlierRun | None:
    """The run that a new one with this label does again; None if there is none.

    It is the run that made the version of the label, if the new run would start from the same version, or if the version is on the way
    to the head and the user names no start.

    Args:
        label: of the new run; may be empty.
        on: the version that the user names as the start, if any.
    """
    former = next((version for version in history if label and version.label == label), None)
    if former is None or former.start is None:
        return None
    line = history.lineage(former)
    start = history.versions[former.start]
    head = history.versions[history.head]
    is_same_start = (on or head).number == start.number
    is_on_the_way = on is None and any(version.number == former.number for version in history.lineage(head))
    if not (is_same_start or is_on_the_way):
        return None
    return EarlierRun(start, tuple(line[[version.number for version in line].index(start.number) + 1 :]))


def run_since_change(history: History, version: Version) -> EarlierRun:
    """What made a version, to run again.

    It begins with what follows the last ancestor that was replaced meanwhile, on the version in its place; without such an ancestor,
    with the first stage.

    Raises:
        KdError: no stage made the version.
    """
    line = history.lineage(version)
    start, rest = line[0], line[1:]
    for at, each in enumerate(line[:-1], 1):
        if each.replaced_by is not None and each.replaced_by in history.versions:
            start, rest = history.versions[each.replaced_by], line[at:]
    run = EarlierRun(start, tuple(rest))
    if not run.lines:
        raise KdError(f"no stage made {version.name}, so there is nothing to run again", "%kd eval measures a version again")
    return run


def with_replacement_notes(old: Sequence[Version], made: Sequence[Version], after: History) -> History:
    """The history after a run was done again, with a note at each new version on what it replaces.

    Args:
        old, made: as for `History.succeeded`.
        after: its result.
    """
    for version in old:
        if version.inserted or version.stage is None:
            continue
        later = successor(version, made)
        if version.number in after.versions:
            built = [each.name for each in after if each.parent == version.number]
            again = " and ".join(f"%kd rerun {name}" for name in built)
            note = f"replaces @{version.number}, which is kept, as {' and '.join(built)} {'is' if len(built) == 1 else 'are'} built on it; {again} builds on this one"
        else:
            note = f"replaces @{version.number} ({version.stage.line()}); %kd restore @{version.number} brings it back"
        found = after.versions[later.number]
        after = after.replaced(replace(found, session_notes=(*found.session_notes, note)))
    return after
