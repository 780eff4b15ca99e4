"""Correlation congruence: the student matches the teacher's kernel matrix of a batch (CC).

Peng, Jin, Liu, Li, Wu, Liu, Zhou, Zhang, "Correlation Congruence for Knowledge Distillation", ICCV 2019 (arXiv:1904.01802).

    k(x, y) = exp(-2γ) · Σ_{p=0..P} (2γ)^p / p! · (x·y)^p     x, y of length 1; γ = 0.4, P = 2
    L = 1/B² · Σ_ij (k(x_i, x_j) of the student - of the teacher)²

k is the Gaussian kernel exp(-γ‖x - y‖²) as its Taylor series to order P. Published implementations disagree: one omits
the square, one compares neighbouring items only; this follows the paper.

Pitfalls: the paper states no weight for this normalization; 100 pulls 1.5 times as hard as the labels on a CIFAR ResNet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from kdkit import param
from kdkit_distill.precision import full_precision, wide_pair
from kdkit_distill.relation.geometry import unit
from kdkit_distill.relation.stage import RelationStage
from kdkit_distill.weighting import Weight, weighted


@full_precision
def correlation_congruence(student: Tensor, teacher: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """The mean squared difference between the rows of an item in both kernel matrices.

    Args:
        student: features (batch, ...), flattened; computed in float32 at least.
        teacher: features (batch, ...); the size of an item may differ.
        gamma: how fast the kernel falls with distance.
        order: of the Taylor series, at least 1.

    Returns:
        (batch,); the mean is the published loss.

    >>> correlation_congruence(torch.eye(3), 2 * torch.eye(3))
    tensor([0., 0., 0.])
    """
    mine, theirs = (_kernel(each.flatten(1), gamma, order) for each in wide_pair(student, teacher))
    return (mine - theirs).square().mean(1)


def _kernel(rows: Tensor, gamma: float, order: int) -> Tensor:
    directions = unit(rows)
    cosines = 2 * gamma * (directions @ directions.T)
    series = term = torch.ones_like(cosines)
    for power in range(1, order + 1):
        term = term * cosines / power
        series = series + term
    return math.exp(-2 * gamma) * series


class CorrelationCongruence(RelationStage):
    """Match the kernel matrix of a batch (CC).

    Loss of an item: the mean over the batch of (k_s - k_t)², k the Gaussian kernel between features of length 1 as its Taylor
    series. Widths of layers may differ.
    """

    id: ClassVar[str] = "distill.correlation-congruence"
    known_as: ClassVar[tuple[str, ...]] = ("CC", "CCKD")

    weight: Weight = weighted(100.0, pull=1.5, search=(10, 1000))
    gamma: float = param(0.4, "how fast the kernel falls with distance", gt=0, search=(0.1, 2))
    order: int = param(2, "of the kernel's Taylor series", ge=1, advanced=True)

    def objectives(self) -> Iterable[tuple[str, float, Callable[[Tensor, Tensor], Tensor]]]:
        yield "correlation-congruence", 1.0, partial(correlation_congruence, gamma=self.gamma, order=self.order)
