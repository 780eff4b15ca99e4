"""Standardized logits (LogitStd): the scale of the student's logits may differ from the teacher's.

Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024 (arXiv:2403.01681). With

    Z(z) = (z - mean(z)) / (std(z) + eps)            over an item's classes; std with n - 1, eps = 1e-7

the loss per item is T² · KL(softmax(Z(z_t) / T) ‖ softmax(Z(z_s) / T)), whatever the scale and shift of either's logits.

The defaults are the paper's: T = 2 and 9 · KD + 0.1 · label loss, which is alpha 0.9 and a weight of 10.

Pitfalls: T loses its usual meaning. Each item's logits are divided by its own T · std, so T only sets how peaked the common
scale is: values for distill soft do not carry over. The teacher's confidence in an item is not transferred; the labels have to
teach it. With two classes only the sign would be left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from kdkit import Term, param
from kdkit.tasks import at_least_float32
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.response.stage import ResponseStage
from kdkit_distill.signals import Signal, SignalPair
from kdkit_distill.weighting import Weight, weighted

EPS = 1e-7
"""Added to the standard deviation, as in the authors' code."""


def standardized(logits: Tensor) -> Tensor:
    """(z - mean) / (std + eps) over the classes; -inf is ignored and kept; 0 without a gradient if all are equal.

    Args:
        logits: (..., classes); computed in float32 at least.

    >>> standardized(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])).round(decimals=4)
    tensor([[-1.,  0.,  1.],
            [ 0.,  0.,  0.]])
    """
    logits = at_least_float32(logits)
    there = logits > -math.inf
    known = logits.where(there, 0.0)
    held = there.sum(-1, keepdim=True)
    centred = (known - known.sum(-1, keepdim=True) / held.clamp_min(1)).where(there, 0.0)
    spread = centred.norm(dim=-1, keepdim=True) / (held - 1).clamp_min(1).sqrt()
    # equal up to rounding: for equal logits the gradient would be 1 / eps
    varies = spread > 8 * torch.finfo(logits.dtype).eps * known.abs().amax(-1, keepdim=True)
    return (centred / (spread + EPS)).where(varies, 0.0).masked_fill(~there, -math.inf)


def soft_standardized(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · KL of the softened standardized logits; arguments and result as in `soft_labels`.

    >>> soft_standardized(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[3.0, 5.0, 9.0]]), 2.0).abs() < 1e-5
    tensor([True])
    """
    return soft_labels(standardized(student), standardized(teacher), temperature)


class Standardized(ResponseStage):
    """Match the softened probabilities of logits brought to one scale (LogitStd).

    Loss per item, or token: (1 - alpha) · label loss + alpha · weight · T² · KL(softmax(Z(z_t) / T) ‖ softmax(Z(z_s) / T)) with
    Z(z) = (z - mean) / std over an item's classes. T has another meaning than in other techniques: it acts on the common scale.
    """

    id: ClassVar[str] = "distill.standardized"
    known_as: ClassVar[tuple[str, ...]] = ("LogitStd", "LSKD", "logit standardization")

    temperature: float = param(2.0, "softens the standardized logits; values for other techniques do not carry over", gt=0, search=(1, 4), main=True)
    weight: Weight = weighted(10.0, search=(1, 30))

    def incompatible_signals(self, student: Signal, teacher: Signal) -> str:
        return "" if student.logits.shape[-1] > 2 else "two standardized logits are always the same two numbers, so only the sign is left; use distill soft"

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        yield Term("standardized", soft_standardized(seen.student.logits, seen.teacher.dense, self.temperature_at(seen.step.progress)))
