"""Flow: how the features of one layer turn into those of the next is the teacher's (FSP).

Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning",
CVPR 2017.

    G(x) = 1/N · Σ_n F1[:, n] F2[:, n]ᵀ     N: places of the map, or tokens that are no padding
    L = Σ over consecutive layers · mean over channels (G_s - G_t)²

Pitfalls: G has the channels of its two layers, so both nets need equal channels; where they differ a linear map of the
student's channels is trained beside it. Of two layers the larger map is pooled to the smaller.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkit.contract import param
from kdkit.errors import KdError
from kdkit.tasks.contract import wide
from kdkit.training import Term
from kdkit_distill.feature.stage import LayerStage
from kdkit_distill.pooling import real_tokens
from kdkit_distill.precision import full_precision
from kdkit_distill.projections import bridge
from kdkit_distill.signals import Exchange, Pair

if TYPE_CHECKING:
    from kdkit.context import Context


@full_precision
def flow(lower: Tensor, upper: Tensor, real: Tensor | None = None) -> Tensor:
    """The products of two layers' channels, their mean over places: what leads from one to the other.

    Args:
        lower: maps (batch, channels, height, width), or tokens (batch, tokens, channels); computed in float32 at least.
        upper: the like from another layer; of maps, the larger is pooled to the smaller.
        real: (batch, tokens) bool, which tokens are no padding.

    Returns:
        (batch, channels of lower, channels of upper).

    >>> flow(torch.ones(2, 3, 8, 8), torch.ones(2, 5, 4, 4)).shape
    torch.Size([2, 3, 5])
    """
    lower, upper = wide(lower), wide(upper)
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


class Flow(LayerStage):
    """Match how the features of one layer turn into those of the next (FSP).

    Loss: for each two consecutive layers the mean squared difference of the products of their channels. Give two pairs of
    layers or more, in order: --layers layer1=layer1 layer2=layer3. Where channels differ, a linear map of the student's is
    trained beside it and thrown away.
    """

    id: ClassVar[str] = "distill.flow"

    weight: float = param(50.0, "factor of the technique's terms", gt=0, search=(5, 500))

    def pairs(self, student: nn.Module, teacher: nn.Module | None, context: Context) -> tuple[Pair, ...]:
        found = super().pairs(student, teacher, context)
        if len(found) < 2:
            raise KdError(f"{self.title} compares what leads from one layer to the next, and has {len(found)} pair", "name two or more: --layers layer1 layer2=layer3")
        return found

    def modules(self, features: list[tuple[Tensor, Tensor]], context: Context) -> nn.ModuleDict:
        found = nn.ModuleDict()
        for number, (student, teacher) in enumerate(features):
            if student.dim() != teacher.dim() or student.dim() not in (3, 4) or student.dim() != features[0][0].dim():
                raise KdError(
                    f"{self.title}: layers that give {tuple(student.shape)} and {tuple(teacher.shape)} have no flow to compare",
                    "choose layers that all give maps (batch, channels, height, width), or all tokens (batch, tokens, hidden)",
                )
            found[str(number)] = bridge(_channels_last(student), _channels_last(teacher))
        return found

    def terms(self, seen: Exchange) -> Iterable[Term]:
        real = real_tokens(seen.step.batch)
        mine = [_bridged(student, seen.modules[key]) for key, student, _ in seen.features()]
        theirs = [teacher for *_, teacher in seen.features()]
        parts = [flow_difference(flow(*student, real=real), flow(*teacher, real=real)) for student, teacher in zip(pairwise(mine), pairwise(theirs), strict=True)]
        yield Term("flow", torch.stack(parts).sum(0))


def _channels_last(feature: Tensor) -> Tensor:
    return feature.movedim(1, -1) if feature.dim() == 4 else feature


def _bridged(feature: Tensor, linear: nn.Module) -> Tensor:
    """A linear map of the channels."""
    return linear(feature) if feature.dim() == 3 else linear(feature.movedim(1, -1)).movedim(-1, 1)
