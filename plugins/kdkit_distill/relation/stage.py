"""The base class of techniques that compare relations between items; the nets' widths may differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from kdkit import Term, param
from kdkit_distill.layers.matching import parsed
from kdkit_distill.layers.pooling import vectors
from kdkit_distill.layers.stage_detection import penultimate
from kdkit_distill.signals import Pair, SignalPair
from kdkit_distill.technique import DistillStage

if TYPE_CHECKING:
    from kdkit import Context


class RelationStage(DistillStage):
    """A technique that compares the relations between the items of a batch; it needs no projection."""

    relational: ClassVar[bool] = True
    pools_maps: ClassVar[bool] = True
    """Whether an item's vector is the mean of its feature map, as in the papers that compare embeddings."""

    alpha: float = param(
        0.5, "share of the teacher in the loss; the rest is the labels'; 0.5 weighs both equally, as in the papers", ge=0, le=1, search=(0.3, 1.0), main=True
    )
    layers: tuple[str, ...] = param((), "pairs student_layer=teacher_layer, or one name for both; default: the input of the head")

    def pairs(self, student: nn.Module, teacher: nn.Module | None, context: Context) -> tuple[Pair, ...]:
        if self.layers:
            return parsed(self.layers)
        mine = penultimate(student, context.example)
        return (Pair(mine, mine if teacher is None else penultimate(teacher, context.example)),)

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        batch, places = seen.step.batch, not self.pools_maps
        both = [(vectors(student, batch, places), vectors(teacher, batch, places)) for _, student, teacher in seen.features()]
        for name, weight, objective in self.objectives():
            yield Term(name, torch.stack([objective(student, teacher) for student, teacher in both]).sum(0), weight)

    def objectives(self) -> Iterable[tuple[str, float, Callable[[Tensor, Tensor], Tensor]]]:
        """(name, weight, objective) of each term. An objective takes both nets' vectors, (batch, size), and returns (batch,), summed over the pairs."""
        raise NotImplementedError
