"""What schemes share that don't learn from one teacher of the session: they have several, or none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from kdkit.contract import Needs, TrainStage, param
from kdkit.errors import KdError
from kdkit_distill.response.stage import ResponseStage
from kdkit_distill.sources import Source

if TYPE_CHECKING:
    from kdkit.context import Context


class SeveralTeachers(ResponseStage):
    """A scheme of several teachers, each of whom says something of its own."""

    sample_options: ClassVar[str] = "--teachers {one} {other} --control train"

    teachers: tuple[str, ...] = param((), "models of the session, two or more; they take the place of --teacher", refers="model")

    def needed(self) -> Needs:
        return replace(super().needed(), teacher=False)

    def references(self) -> Iterator[tuple[str, str, str]]:
        return (each for each in super().references() if each[0] != "teacher")

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if len(set(self.teachers)) < 2:
            yield "--teachers wants two teachers or more: --teachers {one} {other}"
        if self.teacher != "teacher":
            yield "--teachers takes the place of --teacher; leave out --teacher"

    def weighted_oddly(self, weights: Sequence[float]) -> Iterator[str]:
        """What is wrong with weights of the teachers, a line each; none at all are equal ones."""
        if weights and (len(weights) != len(self.teachers) or min(weights) < 0 or not sum(weights)):
            yield f"--weights wants a number a teacher, none negative and not all 0: {len(self.teachers)} teachers"


class NoTeacher(ResponseStage):
    """A scheme in which nets learn from labels and from what comes of that, and not from a teacher of the session."""

    def needed(self) -> Needs:
        return replace(super().needed(), teacher=False, labels=True)

    def references(self) -> Iterator[tuple[str, str, str]]:
        return (each for each in super().references() if each[0] != "teacher")

    def source(self, context: Context) -> Source:
        return Source()


def refuse(stage: TrainStage) -> None:
    """Stop where a stage's options don't go together.

    Raises:
        KdError: they don't.
    """
    problems = list(stage.conflicts())
    if problems:
        raise KdError(problems[0], *problems[1:])
