"""Hints: the student's inner features are drawn to the teacher's.

Romero et al., "FitNets: Hints for Thin Deep Nets", 2015 (arXiv:1412.6550). The paper trains up to the hint first and then on
soft labels; joint training, as in RepDistiller, is the default here, and `--hint-share` gives the paper's two stages.

Pitfalls: a deep hint regularises strongly, and a net that can't follow it learns nothing else, so begin with a middle layer or
a smaller weight. The projection learns too: it takes up part of what the student is to learn, and is gone afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from torch import Tensor

from kdkit.contract import param
from kdkit.training import Term
from kdkit_distill.feature.stage import ProjectedStage, counted, term_name
from kdkit_distill.precision import wide_pair
from kdkit_distill.signals import Exchange


def hint_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of two features of one shape.

    Args:
        student: (batch, channels, height, width), (batch, tokens, hidden) or (batch, size); computed in float32 at least.
        teacher: of the same shape.

    Returns:
        (batch,), over all of a map; for tokens (batch, tokens).

    >>> import torch
    >>> hint_distance(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
    tensor([1., 1.])
    """
    student, teacher = wide_pair(student, teacher)
    squared = (student - teacher).square()
    return squared.mean(-1) if squared.dim() == 3 else squared.flatten(1).mean(1)


class Hints(ProjectedStage):
    """Match the features of layers, after a projection (FitNets).

    Loss per item: (1 - alpha) · label loss + alpha · weight · Σ over pairs of mean (r(f_s) - f_t)², r a 1x1 convolution or
    linear layer where widths differ. With --hint-share the first part of the training has hints alone, the rest all but hints.
    """

    id: ClassVar[str] = "distill.hints"

    weight: float = param(100.0, "factor of the technique's terms", gt=0, search=(1, 1000))
    hint_share: float = param(0.0, "share of the training, at its start, that learns from hints alone; the rest then does without them; 0 does both at once", ge=0, lt=1)

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.hint_share and self.share == 1 and not self.also:
            yield "--hint-share leaves nothing to learn from after the hints; keep labels (--alpha below 1), or add --also soft"

    def alone(self, progress: float) -> bool:
        return progress < self.hint_share

    def terms(self, seen: Exchange) -> Iterable[Term]:
        if self.hint_share and not self.alone(seen.step.progress):
            return
        for pair, (student, teacher) in zip(seen.pairs, self.projected(seen), strict=True):
            yield Term(term_name("hint", pair, seen), counted(hint_distance(student, teacher), seen.step))
