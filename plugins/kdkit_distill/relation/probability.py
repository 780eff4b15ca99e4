"""Probability: how likely each item picks each other as its neighbour is the teacher's distribution (PKT).

Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018 (arXiv:1803.10837).

    K_ij = (cos(f_i, f_j) + 1) / 2     p_j|i = K_ij / Σ_{k≠i} K_ik     L_i = Σ_{j≠i} p_j|i · log(p_j|i / q_j|i)

As in the paper an item is no neighbour of its own; the published code counts it, which only pulls both distributions
together. That code also takes the mean over B² where this is a sum over a row: its weight of 30000 at 64 items is 470 here.

Pitfalls: two items have but one neighbour each, so three are the least that say anything; with hundreds of items the shares
are nearly uniform and the loss is small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from kdkit.contract import param
from kdkit_distill.precision import full_precision, wide_pair
from kdkit_distill.relation.geometry import unit
from kdkit_distill.relation.stage import RelationStage

LEAST = 1e-7
"""The kernel of opposite vectors, whose logarithm is taken."""


@full_precision
def neighbour_probabilities(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(p ‖ q) of each item's distribution over the others, p the teacher's.

    Args:
        student: features (batch, ...), flattened; computed in float32 at least.
        teacher: features (batch, ...), of any other size an item.

    Returns:
        (batch,), at least 0.

    >>> neighbour_probabilities(torch.eye(3), 2 * torch.eye(3))
    tensor([0., 0., 0.])
    """
    said, asked = (_log_shares(each.flatten(1)) for each in wide_pair(student, teacher))
    return (asked.exp() * (asked - said)).sum(1)


def _log_shares(rows: Tensor) -> Tensor:
    """log p_j|i over the others, (items, items - 1)."""
    directions = unit(rows)
    kernel = ((directions @ directions.T + 1) / 2).clamp_min(LEAST).log()
    items = len(rows)
    others = ~torch.eye(items, dtype=torch.bool, device=rows.device)
    return torch.log_softmax(kernel[others].view(items, items - 1), 1)


class Probability(RelationStage):
    """Match which neighbours each item of a batch is likely to pick (PKT).

    Loss of an item: KL(p ‖ q) over the other items, shares of the cosine kernel (cos + 1) / 2. Layers of any width can
    be compared; it takes at least three items.
    """

    id: ClassVar[str] = "distill.probability"

    weight: float = param(470.0, "factor of the technique's terms", gt=0, search=(50, 5000))

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.batch_size == 2:
            yield "--batch-size 2 leaves each item one other to pick, so there is nothing to learn; it takes at least three"

    def objectives(self) -> Iterable[tuple[str, float, Callable[[Tensor, Tensor], Tensor]]]:
        yield "probability", 1.0, neighbour_probabilities
