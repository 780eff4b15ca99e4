"""Succession: trainings one after another, in which each student becomes the next one's teacher."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from kdkit import Term
from kdkit.training import fit
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.response.stage import ResponseStage
from kdkit_distill.scheme.rounds import Round
from kdkit_distill.signals import SignalPair

if TYPE_CHECKING:
    from kdkit import Context

PREVIOUS = "the student before"
"""The name under which the next student finds its teacher; objects of a session can't have such a name."""


class Succession(ResponseStage):
    """A scheme of several trainings of soft labels; the first student learns from the teacher, each other from the one before."""

    shares_loop: ClassVar[bool] = False

    @property
    def run_count(self) -> int:
        """How many trainings the stage runs, one after another."""
        raise NotImplementedError

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if (self.checkpoint or self.resume) and self.run_count > 1:
            yield "--checkpoint and --resume are for one training, and this stage runs several; leave them out"

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        yield Term("soft", soft_labels(seen.student.logits, seen.teacher.logits, self.temperature_at(seen.step.progress)))

    def train_in_turn(self, learners: Iterable[tuple[str, nn.Module]], context: Context) -> Iterator[nn.Module]:
        """Train the learners, `run_count` of them, one after another; each note begins with the learner's name.

        Args:
            learners: (name, net before its training), requested one at a time.
        """
        teacher: nn.Module | None = None
        for number, (name, learner) in enumerate(learners, 1):
            # a cache holds the first teacher's output
            changes: dict[str, Any] = {"student": None, **({"teacher": PREVIOUS, "cache": None} if teacher is not None else {})}
            objects = context.objects if teacher is None else ChainMap({PREVIOUS: teacher}, context.objects)
            apart = Round(number, self.run_count, name).of(context, objects=objects)
            teacher = fit(learner, [self.model_copy(update=changes)], apart)
            context.notes.extend(f"{name}: {note}" for note in apart.notes)
            context.attachments.extend(apart.attachments)
            yield teacher
