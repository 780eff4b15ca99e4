"""What techniques over a transformer's inside share: both nets' blocks, by name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from kdkit.errors import KdError
from kdkit_distill.signals import Pair
from kdkit_distill.stage import DistillStage
from kdkit_distill.transformer.stack import Attention, Stack, stack_of


@dataclass(frozen=True)
class Aligned(Pair):
    """Two layers that are compared, what for, and the attentions they belong to."""

    role: str = ""
    mine: Attention | None = None
    theirs: Attention | None = None


class TransformerStage(DistillStage):
    """A technique that compares what is inside two transformers over the same tokens."""

    def stacks(self, student: nn.Module, teacher: nn.Module | None) -> tuple[Stack, Stack]:
        """The student's blocks and the teacher's.

        Raises:
            KdError: one is no transformer that can be read, or the teacher is not at hand.
        """
        if teacher is None:
            raise KdError(f"{self.title} looks inside the teacher, and only its answers are at hand", "pass the teacher as a model: %kd use ... --teacher {model}")
        return stack_of(student), stack_of(teacher)
