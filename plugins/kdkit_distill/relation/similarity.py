"""Similarity: items that are similar for the teacher should be similar for the student (SP).

Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019 (arXiv:1907.09682).

    L = 1/B² · ‖ rows(F_s F_sᵀ) - rows(F_t F_tᵀ) ‖²     F: (batch, everything else flattened), rows: each of length 1

Pitfalls: rows are normalized, not the features; the value depends on the batch and its size (entries shrink as 1/√B, so
weights are not comparable between batch sizes, which the default weight, chosen from gradients, makes up for), and batches can't
be accumulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

from torch import Tensor

from kdkit_distill.precision import full_precision, wide_pair
from kdkit_distill.relation.geometry import unit
from kdkit_distill.relation.stage import RelationStage
from kdkit_distill.weighting import Weight, weighted


@full_precision
def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference between both nets' similarities of an item to the batch.

    Args:
        student: features (batch, ...), flattened; computed in float32 at least.
        teacher: features (batch, ...); the size of an item may differ.

    Returns:
        (batch,); the mean is the published loss.

    >>> import torch
    >>> similarity(torch.eye(2), torch.ones(2, 3)).round(decimals=4)
    tensor([0.2929, 0.2929])
    """
    mine, theirs = (unit(_gram(each.flatten(1))) for each in wide_pair(student, teacher))
    return (mine - theirs).square().mean(1)


def _gram(rows: Tensor) -> Tensor:
    # the scale of all features cancels in the normalization; without this division squares may overflow
    top = rows.detach().abs().amax()
    rows = rows / top.masked_fill(top == 0, 1.0)
    return rows @ rows.T


class Similarity(RelationStage):
    """Match which items of a batch are similar (SP).

    Loss of an item: the mean over the batch of (row of F_s F_sᵀ - row of F_t F_tᵀ)², rows of length 1. Widths of
    layers may differ. The value depends on the batch size: at least 2; the paper uses 64.
    """

    id: ClassVar[str] = "distill.similarity"
    known_as: ClassVar[tuple[str, ...]] = ("SP", "SPKD", "similarity-preserving")
    pools_maps: ClassVar[bool] = False

    weight: Weight = weighted(3000.0, pull=2, search=(300, 30000))

    def objectives(self) -> Iterable[tuple[str, float, Callable[[Tensor, Tensor], Tensor]]]:
        yield "similarity", 1.0, similarity
