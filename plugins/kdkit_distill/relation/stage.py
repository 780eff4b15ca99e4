"""What techniques over relations share: items are compared with one another, so each net may have its own width."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from kdkit.contract import param
from kdkit.training import Term
from kdkit_distill.matching import parsed, penultimate
from kdkit_distill.pooling import vectors
from kdkit_distill.signals import Exchange, Pair
from kdkit_distill.stage import DistillStage

if TYPE_CHECKING:
    from kdkit.context import Context


class RelationStage(DistillStage):
    """A technique that compares how the items of a batch stand to one another; nothing needs to be projected."""

    relational: ClassVar[bool] = True
    pools_maps: ClassVar[bool] = True
    """Whether an item's vector is the mean of its feature map, as it is in the papers that compare embeddings."""

    alpha: float = param(0.5, "share of the teacher in the loss; the rest is the labels', at .5 as the papers add them", ge=0, le=1, search=(0.3, 1.0))
    layers: tuple[str, ...] = param((), "pairs student_layer=teacher_layer, or one name for both; what goes into the head when not said")

    def pairs(self, student: nn.Module, teacher: nn.Module | None, context: Context) -> tuple[Pair, ...]:
        if self.layers:
            return parsed(self.layers)
        mine = penultimate(student, context.example)
        return (Pair(mine, mine if teacher is None else penultimate(teacher, context.example)),)

    def terms(self, seen: Exchange) -> Iterable[Term]:
        batch, places = seen.step.batch, not self.pools_maps
        both = [(vectors(student, batch, places), vectors(teacher, batch, places)) for _, student, teacher in seen.features()]
        for name, weight, objective in self.objectives():
            yield Term(name, torch.stack([objective(student, teacher) for student, teacher in both]).sum(0), weight)

    def objectives(self) -> Iterable[tuple[str, float, Callable[[Tensor, Tensor], Tensor]]]:
        """(name, weight, objective) of each term; objectives take both nets' vectors, (batch, size) each, and their (batch,) are summed over the pairs."""
        raise NotImplementedError
