"""Succession: trainings one after another, in which each student becomes the next one's teacher."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from kdkit.training import Term
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.response.stage import ResponseStage
from kdkit_distill.rounds import Round
from kdkit_distill.signals import Exchange

if TYPE_CHECKING:
    from kdkit.context import Context

PREVIOUS = "the student before"
"""Under which name the next student finds its teacher; no name that an object of the session can have."""


class Succession(ResponseStage):
    """A scheme of several trainings of soft labels; the first student learns from the teacher, each other from the one before."""

    shares_loop: ClassVar[bool] = False

    def terms(self, seen: Exchange) -> Iterable[Term]:
        yield Term("soft", soft_labels(seen.student.logits, seen.teacher.logits, self.temperature_at(seen.step.progress)))

    def handed_down(self, learners: Iterable[tuple[str, nn.Module]], context: Context) -> Iterator[nn.Module]:
        """Train the learners, `fits` of them, one after another; what is noted of a training begins with its learner's name.

        Args:
            learners: (name, net as its training begins), asked for one at a time.
        """
        teacher: nn.Module | None = None
        for number, (name, learner) in enumerate(learners, 1):
            # a cache is of the first teacher's answers
            changes: dict[str, Any] = {"student": None, **({"teacher": PREVIOUS, "cache": None} if teacher is not None else {})}
            objects = context.objects if teacher is None else ChainMap({PREVIOUS: teacher}, context.objects)  # type: ignore[arg-type]
            apart = Round(number, self.fits, name).of(context, objects=objects)
            teacher = apart.fit(learner, [self.model_copy(update=changes)])
            context.notes.extend(f"{name}: {note}" for note in apart.notes)
            context.exhibits.extend(apart.exhibits)
            yield teacher
