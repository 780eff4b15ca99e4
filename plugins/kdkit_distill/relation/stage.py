"""What techniques over relations share: items are compared with one another, so each net may have its own width."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from kdkit.contract import param
from kdkit.training import Term
from kdkit_distill.lesson import DistillStage
from kdkit_distill.matching import parsed, penultimate
from kdkit_distill.relation.geometry import vectors
from kdkit_distill.signals import Exchange, Pair

if TYPE_CHECKING:
    from kdkit.context import Context


class RelationStage(DistillStage):
    """A technique that compares how the items of a batch stand to one another; nothing needs to be projected."""

    relational: ClassVar[bool] = True
    pools_maps: ClassVar[bool] = True
    """Whether an item's vector is the mean of its feature map, as it is in the papers that compare embeddings."""

    layers: tuple[str, ...] = param((), "pairs student_layer=teacher_layer, or one name for both; what goes into the head when not said")

    def pairs(self, student: nn.Module, teacher: nn.Module | None, context: Context) -> tuple[Pair, ...]:
        if self.layers:
            return parsed(self.layers)
        mine = penultimate(student, context.example)
        return (Pair(mine, mine if teacher is None else penultimate(teacher, context.example)),)

    def terms(self, seen: Exchange) -> Iterable[Term]:
        real = seen.step.batch.kwargs.get("attention_mask")
        both = [(vectors(student, real, self.pools_maps), vectors(teacher, real, self.pools_maps)) for _, student, teacher in seen.features()]
        for name, weight, values in self.compared(both):
            yield Term(name, values, weight)

    def compared(self, both: list[tuple[Tensor, Tensor]]) -> Iterable[tuple[str, float, Tensor]]:
        """(name, weight, values (batch,)) of each term, summed over the pairs of layers.

        Args:
            both: (student's, teacher's) vectors of each pair, (batch, size) each.
        """
        raise NotImplementedError
