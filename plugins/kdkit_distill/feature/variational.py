"""Variational information distillation: maximize the mutual information of the student's and the teacher's features.

Ahn et al., "Variational Information Distillation for Knowledge Transfer", 2019 (arXiv:1904.05835).

The loss is a bound on the mutual information of two features: the teacher's feature is modelled as a normal distribution, its
mean predicted from the student's, with a learned variance for each channel. A channel that the student can't predict gets a
large variance, and so a small weight.

Pitfalls: the value may be negative, and is not zero for equal features; at its optimum it is half the log of the remaining
variance, plus a constant. Mean and variance are trained with the student, but not saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkit import Term
from kdkit.tasks import at_least_float32
from kdkit_distill.feature.stage import LayerStage, counted, term_name
from kdkit_distill.layers.projections import Sequence, matched, matched_shapes, sequence_of, width_of
from kdkit_distill.precision import wide_pair
from kdkit_distill.signals import SignalPair

if TYPE_CHECKING:
    from kdkit import Context

LEAST_VARIANCE = 1e-5
BEGINNING_VARIANCE = 5.0


def negative_log_likelihood(mean: Tensor, variance: Tensor, teacher: Tensor) -> Tensor:
    """½ [(mean - teacher)² / variance + log variance]: -log of a normal density, without its constant.

    Args:
        mean: (batch, channels, height, width), (batch, tokens, hidden) or (batch, size); computed in float32 at least.
        variance: (channels,), above 0.
        teacher: same shape as `mean`.

    Returns:
        (batch,), the mean over a map or vector; for tokens (batch, tokens).

    >>> negative_log_likelihood(torch.zeros(2, 3), torch.ones(3), torch.ones(2, 3))
    tensor([0.5000, 0.5000])
    """
    mean, teacher = wide_pair(mean, teacher)
    variance = at_least_float32(variance)
    spread = variance[:, None, None] if mean.dim() == 4 else variance
    values = 0.5 * ((mean - teacher).square() / spread + spread.log())
    return values.mean(-1) if values.dim() == 3 else values.flatten(1).mean(1)


class Prediction(nn.Module):
    """Predicts a teacher's feature from a student's: a mean by three 1x1 convolutions or linear layers, and a variance for each channel.

    Args:
        student, teacher: shapes, as for `Projection`.
        sequence: what tokens are.
    """

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...], sequence: Sequence = "text"):
        super().__init__()
        self.sequence = sequence
        one, two = matched_shapes(student, teacher, sequence)
        width, wanted = width_of(one), width_of(two)

        def mix(inputs: int) -> nn.Module:
            return nn.Conv2d(inputs, wanted, 1, bias=False) if len(one) == 4 else nn.Linear(inputs, wanted, bias=False)

        self.mean = nn.Sequential(mix(width), nn.ReLU(), mix(wanted), nn.ReLU(), mix(wanted))
        self.scale = nn.Parameter(torch.full((wanted,), math.log(math.expm1(BEGINNING_VARIANCE - LEAST_VARIANCE))))

    @property
    def variance(self) -> Tensor:
        """(channels,)."""
        return F.softplus(self.scale) + LEAST_VARIANCE

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The negative log-likelihood of the teacher's feature, see `negative_log_likelihood`."""
        one, two = matched(at_least_float32(student), at_least_float32(teacher), self.sequence)
        return negative_log_likelihood(self.mean(one.to(self.scale.dtype)), self.variance, two)


class Variational(LayerStage):
    """Predict the teacher's features, each channel weighted by how well it can be predicted (VID).

    Loss per item: (1 - alpha) · label loss + alpha · weight · Σ over pairs of mean ½ [(mu(f_s) - f_t)² / v + log v], with mu three
    1x1 convolutions and v a variance for each channel, initially 5; both are trained with the student. The loss may be negative.
    """

    id: ClassVar[str] = "distill.variational"
    known_as: ClassVar[tuple[str, ...]] = ("VID",)

    def modules(self, features: list[tuple[Tensor, Tensor]], context: Context) -> nn.ModuleDict:
        sequence = sequence_of(context.example)
        made = [Prediction(tuple(student.shape), tuple(teacher.shape), sequence).to(student.device, at_least_float32(student).dtype) for student, teacher in features]
        return nn.ModuleDict({str(number): module for number, module in enumerate(made)})

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        for pair, (key, student, teacher) in zip(seen.pairs, seen.features(), strict=True):
            yield Term(term_name("variational", pair, seen), counted(seen.modules[key](student, teacher), seen.step))
