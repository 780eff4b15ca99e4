"""Flow: the student matches how the teacher's features change from one layer to the next (FSP).

Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning",
CVPR 2017.

    G(x) = 1/N · Σ_n F1[:, n] F2[:, n]ᵀ     N: places of the map, or tokens that are not padding
    L = Σ over consecutive layers · mean over channels (G_s - G_t)²

The paper trains in two stages: first this loss alone, which gives the student's weights a start, then the labels alone.

Pitfalls: G has the channels of its two layers, so both nets need equal channels; where they differ, a linear map of the
student's channels is trained with it. The larger of two maps is pooled to the size of the smaller.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkit import KdError, Term, param
from kdkit.tasks import at_least_float32
from kdkit_distill.feature.stage import TwoStages
from kdkit_distill.layers.pooling import real_tokens
from kdkit_distill.layers.projections import bridge
from kdkit_distill.precision import full_precision
from kdkit_distill.signals import Pair, SignalPair
from kdkit_distill.weighting import Weight, weighted

if TYPE_CHECKING:
    from kdkit import Context


FIRST = 0.3
"""The share of the first of the two stages."""


@full_precision
def flow(lower: Tensor, upper: Tensor, real: Tensor | None = None) -> Tensor:
    """The products of two layers' channels, averaged over places.

    Args:
        lower: maps (batch, channels, height, width), or tokens (batch, tokens, channels); computed in float32 at least.
        upper: the same kind of feature of another layer; the larger map is pooled to the smaller.
        real: (batch, tokens) bool, which tokens are not padding.

    Returns:
        (batch, channels of lower, channels of upper).

    >>> flow(torch.ones(2, 3, 8, 8), torch.ones(2, 5, 4, 4)).shape
    torch.Size([2, 3, 5])
    """
    lower, upper = at_least_float32(lower), at_least_float32(upper)
    if lower.dim() == 3:
        kept = lower.new_ones(lower.shape[:2], dtype=torch.bool) if real is None else real.to(lower.device)
        lower, upper = (each.masked_fill(~kept[..., None], 0.0) for each in (lower, upper))
        return lower.transpose(1, 2) @ upper / kept.sum(1).clamp_min(1)[:, None, None]
    size = (min(lower.shape[2], upper.shape[2]), min(lower.shape[3], upper.shape[3]))
    one, two = (F.adaptive_avg_pool2d(each, size).flatten(2) for each in (lower, upper))
    return one @ two.transpose(1, 2) / one.shape[2]


def flow_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of two flows: (batch, one, two) each -> (batch,).

    >>> flow_difference(torch.ones(2, 3, 4), torch.zeros(2, 3, 4))
    tensor([1., 1.])
    """
    return (student - teacher.to(student.dtype)).square().mean((1, 2))


class Flow(TwoStages):
    """Match how features change from one layer to the next (FSP).

    Loss: for each two consecutive layers, the mean squared difference of the products of their channels. It needs two or more
    pairs of layers, in order: --layers layer1=layer1 layer2=layer3. Where channels differ, a linear map of the student's
    channels is trained with it and not saved. As published, the first --flow-share of the training uses only this loss, and the
    rest only labels and other techniques; without either, all of it uses this loss.
    """

    id: ClassVar[str] = "distill.flow"
    known_as: ClassVar[tuple[str, ...]] = ("FSP",)

    weight: Weight = weighted(50.0, pull=5, search=(5, 500))

    flow_share: float = param(FIRST, "share of the training, at its start, that uses only this loss; the rest uses everything except it; 0: both at once", ge=0, lt=1)

    @property
    def first_share(self) -> float:
        return self.flow_share if self.share < 1 or self.also else 0.0

    def pairs(self, student: nn.Module, teacher: nn.Module | None, context: Context) -> tuple[Pair, ...]:
        found = super().pairs(student, teacher, context)
        if len(found) < 2:
            raise KdError(f"{self.title} compares consecutive layers, but has {len(found)} pair", "name two or more: --layers layer1 layer2=layer3")
        return found

    def modules(self, features: list[tuple[Tensor, Tensor]], context: Context) -> nn.ModuleDict:
        found = nn.ModuleDict()
        for number, (student, teacher) in enumerate(features):
            if student.dim() != teacher.dim() or student.dim() not in (3, 4) or student.dim() != features[0][0].dim():
                raise KdError(
                    f"{self.title}: layers with outputs {tuple(student.shape)} and {tuple(teacher.shape)} have no flow to compare",
                    "choose layers that all output maps (batch, channels, height, width), or all output tokens (batch, tokens, hidden)",
                )
            found[str(number)] = bridge(_channels_last(student), _channels_last(teacher))
        return found

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        if self.is_over(seen.step.progress):
            return
        real = real_tokens(seen.step.batch)
        mine = [_bridged(student, seen.modules[key]) for key, student, _ in seen.features()]
        theirs = [teacher for *_, teacher in seen.features()]
        parts = [flow_difference(flow(*student, real=real), flow(*teacher, real=real)) for student, teacher in zip(pairwise(mine), pairwise(theirs), strict=True)]
        yield Term("flow", torch.stack(parts).sum(0))


def _channels_last(feature: Tensor) -> Tensor:
    return feature.movedim(1, -1) if feature.dim() == 4 else feature


def _bridged(feature: Tensor, linear: nn.Module) -> Tensor:
    """Apply a linear map to the channels."""
    return linear(feature) if feature.dim() == 3 else linear(feature.movedim(1, -1)).movedim(-1, 1)
