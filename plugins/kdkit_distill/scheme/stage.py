"""The base classes of schemes with several teachers, or without a teacher of the session."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from kdkit import KdError, Needs, TrainStage, param
from kdkit_distill.response.stage import ResponseStage
from kdkit_distill.teachers.sources import Source

if TYPE_CHECKING:
    from kdkit import Context


class SeveralTeachers(ResponseStage):
    """A scheme with several teachers."""

    sample_options: ClassVar[str] = "--teachers {one} {other}"

    teachers: tuple[str, ...] = param((), "models of the session, two or more; they replace --teacher", names="model", main=True)

    def required_inputs(self) -> Needs:
        return replace(super().required_inputs(), teacher=False)

    def named_objects(self) -> Iterator[tuple[str, str, str]]:
        return (each for each in super().named_objects() if each[0] != "teacher")

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if len(set(self.teachers)) < 2:
            yield "--teachers needs two teachers or more: --teachers {one} {other}"
        if self.teacher != "teacher":
            yield "--teachers replaces --teacher; leave out --teacher"

    def weight_conflicts(self, weights: Sequence[float]) -> Iterator[str]:
        """What is wrong with the teachers' weights, one message for each problem; no weights mean equal weights."""
        if weights and (len(weights) != len(self.teachers) or min(weights) < 0 or not sum(weights)):
            yield f"--weights needs one number for each teacher, none negative and not all 0: {len(self.teachers)} teachers"


class NoTeacher(ResponseStage):
    """A scheme in which nets learn from labels and from one another, without a teacher of the session."""

    def required_inputs(self) -> Needs:
        return replace(super().required_inputs(), teacher=False, labels=True)

    def named_objects(self) -> Iterator[tuple[str, str, str]]:
        return (each for each in super().named_objects() if each[0] != "teacher")

    def source(self, context: Context) -> Source:
        return Source()


def refuse(stage: TrainStage) -> None:
    """Check that a stage's options can be combined.

    Raises:
        KdError: they can't.
    """
    problems = list(stage.conflicts())
    if problems:
        raise KdError(problems[0], *problems[1:])
