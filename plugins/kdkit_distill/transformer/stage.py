"""The base class of techniques that compare the blocks of two transformers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from kdkit import KdError
from kdkit_distill.signals import Pair
from kdkit_distill.technique import DistillStage
from kdkit_distill.transformer.stack import Attention, Stack, stack_of


@dataclass(frozen=True)
class Aligned(Pair):
    """Two layers to compare, the kind of comparison, and their attentions."""

    role: str = ""
    mine: Attention | None = None
    theirs: Attention | None = None


class TransformerStage(DistillStage):
    """A technique that compares layers of two transformers over the same tokens."""

    def stacks(self, student: nn.Module, teacher: nn.Module | None) -> tuple[Stack, Stack]:
        """The student's blocks and the teacher's.

        Raises:
            KdError: one is not a transformer of a known form, or the teacher is not in memory.
        """
        if teacher is None:
            raise KdError(
                f"{self.title} compares the teacher's layers, but only its cached output is available", "pass the teacher as a model: %kd use ... --teacher {model}"
            )
        return stack_of(student), stack_of(teacher)
