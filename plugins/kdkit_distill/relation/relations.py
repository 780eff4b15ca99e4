"""Relations: the student matches the teacher's distances and angles between items (RKD).

Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019 (arXiv:1904.05068).

    L = 25 · mean_ij huber(d_ij/μ of student, of teacher) + 50 · mean_ijk huber(cos∠ijk of student, of teacher)
    μ: the mean of the batch's distances above 0; ∠ijk: the angle at item j

Pitfalls: means are over all B² pairs and B³ triples, including pairs of an item with itself, as in the published code; equal
points have distance and cosine 0, without a gradient. Angles take B³ · size operations. Memory is bounded: a few corners are
computed at a time, and again in the backward pass. Time is not bounded: use --angle-weight 0 above about a hundred items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdkit import param
from kdkit_distill.precision import full_precision, wide_pair
from kdkit_distill.relation.geometry import distances, unit
from kdkit_distill.relation.stage import RelationStage
from kdkit_distill.weighting import Weight, weighted

AT_ONCE = 2**24
"""The most numbers that angles hold in memory at a time, 64 MB in float32."""


@full_precision
def distance_relations(student: Tensor, teacher: Tensor) -> Tensor:
    """The Huber distance between both nets' relative distances, averaged over each item's row.

    Args:
        student: features (batch, ...), flattened; computed in float32 at least.
        teacher: features (batch, ...); the size of an item may differ.

    Returns:
        (batch,); the mean is the published loss; 0 where all points are equal in both.

    >>> distance_relations(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [2.0], [6.0]]))
    tensor([0., 0., 0.])
    """
    mine, theirs = (_relative(distances(each.flatten(1))) for each in wide_pair(student, teacher))
    return F.smooth_l1_loss(mine, theirs, reduction="none").mean(1)


@full_precision
def angle_relations(student: Tensor, teacher: Tensor, at_once: int = AT_ONCE) -> Tensor:
    """The Huber distance between both nets' cosines of the angles at each item, averaged over all pairs of others.

    Args:
        student: features (batch, ...), flattened; computed in float32 at least.
        teacher: features (batch, ...); the size of an item may differ.
        at_once: the most numbers to hold at a time.

    Returns:
        (batch,); the mean is the published loss.

    >>> corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> angle_relations(corners, 3 * corners)
    tensor([0., 0., 0.])
    """
    mine, theirs = (each.flatten(1) for each in wide_pair(student, teacher))
    items = len(mine)
    corners = max(1, at_once // (items * (items + mine.shape[1] + theirs.shape[1])))
    if corners >= items:
        return _at_corners(mine, theirs, 0, items)
    parts = [checkpoint(_at_corners, mine, theirs, start, min(start + corners, items), use_reentrant=False) for start in range(0, items, corners)]
    return torch.cat(parts)


def _relative(distance: Tensor) -> Tensor:
    """Distances divided by the mean of those above 0."""
    mean = distance.sum() / (distance > 0).sum().clamp_min(1)
    return distance / torch.where(mean > 0, mean, 1.0)


def _at_corners(student: Tensor, teacher: Tensor, start: int, stop: int) -> Tensor:
    mine, theirs = _cosines(student, start, stop), _cosines(teacher, start, stop)
    return F.smooth_l1_loss(mine, theirs, reduction="none").mean((1, 2))


def _cosines(rows: Tensor, start: int, stop: int) -> Tensor:
    """The cosines of the angles at some items, between the directions to all others: (corners, items, items)."""
    directions = unit(rows[None] - rows[start:stop, None])
    return directions @ directions.transpose(1, 2)


class Relations(RelationStage):
    """Match the distances and angles between the items of a batch (RKD).

    Loss: 25 · Huber distance of relative distances + 50 · Huber distance of the cosines of angles. Widths of
    layers may differ. Angles take batch³ operations: use --angle-weight 0 for large batches.
    """

    id: ClassVar[str] = "distill.relations"
    known_as: ClassVar[tuple[str, ...]] = ("RKD", "relational KD")

    weight: Weight = weighted(1.0, pull=10, search=(0.1, 10))
    distance_weight: float = param(25.0, "factor of the distances", ge=0, search=(1, 100))
    angle_weight: float = param(50.0, "factor of the angles; 0: none", ge=0, search=(1, 100))

    def objectives(self) -> Iterable[tuple[str, float, Callable[[Tensor, Tensor], Tensor]]]:
        if self.distance_weight:
            yield "distance", self.distance_weight, distance_relations
        if self.angle_weight:
            yield "angle", self.angle_weight, angle_relations
