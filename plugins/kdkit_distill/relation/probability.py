"""Probability: the student matches the teacher's probabilities that one item is a neighbour of another (PKT).

Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018 (arXiv:1803.10837).

    K_ij = (cos(f_i, f_j) + 1) / 2     p_j|i = K_ij / Σ_{k≠i} K_ik     L_i = Σ_{j≠i} p_j|i · log(p_j|i / q_j|i)

As in the paper, an item is not its own neighbour; the published code counts it, which only makes both distributions more
similar. That code also averages over B², while this sums over a row: its weight of 30000 at 64 items is 470 here, which pulls
about as hard as the labels on a CIFAR ResNet.

Pitfalls: of two items each has only one neighbour, so a batch needs at least three; with hundreds of items the probabilities
are nearly uniform and the loss is small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from kdkit_distill.precision import full_precision, wide_pair
from kdkit_distill.relation.geometry import unit
from kdkit_distill.relation.stage import RelationStage
from kdkit_distill.weighting import Weight, weighted

LEAST = 1e-7
"""The least kernel value, so that its logarithm is finite."""


@full_precision
def neighbour_probabilities(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(p ‖ q) of each item's distribution over the others, p the teacher's.

    Args:
        student: features (batch, ...), flattened; computed in float32 at least.
        teacher: features (batch, ...); the size of an item may differ.

    Returns:
        (batch,), at least 0.

    >>> neighbour_probabilities(torch.eye(3), 2 * torch.eye(3))
    tensor([0., 0., 0.])
    """
    predicted, expected = (_log_shares(each.flatten(1)) for each in wide_pair(student, teacher))
    return (expected.exp() * (expected - predicted)).sum(1)


def _log_shares(rows: Tensor) -> Tensor:
    """log p_j|i over the others, (items, items - 1)."""
    directions = unit(rows)
    kernel = ((directions @ directions.T + 1) / 2).clamp_min(LEAST).log()
    items = len(rows)
    others = ~torch.eye(items, dtype=torch.bool, device=rows.device)
    return torch.log_softmax(kernel[others].view(items, items - 1), 1)


class Probability(RelationStage):
    """Match each item's probabilities over its neighbours in a batch (PKT).

    Loss of an item: KL(p ‖ q) over the other items, p and q from the cosine kernel (cos + 1) / 2. Widths of layers may
    differ. A batch needs at least three items.
    """

    id: ClassVar[str] = "distill.probability"
    known_as: ClassVar[tuple[str, ...]] = ("PKT",)

    weight: Weight = weighted(470.0, pull=1, search=(50, 5000))

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.batch_size == 2:
            yield "--batch-size 2 leaves each item only one neighbour, so there is nothing to learn; use at least 3"

    def objectives(self) -> Iterable[tuple[str, float, Callable[[Tensor, Tensor], Tensor]]]:
        yield "probability", 1.0, neighbour_probabilities
