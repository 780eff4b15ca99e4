"""Knowledge review: the student's deep features are fused with its shallow ones, and match the teacher's shallow features.

Chen et al., "Distilling Knowledge via Knowledge Review", 2021 (arXiv:2104.09044).

From the deepest layer to the first, the student's feature is fused with the result of the deeper ones, with weights learned
for each place (ABF), and compared with the teacher's at several scales (HCL): full size, and pooled to 4x4, 2x2 and 1x1,
with weights 1, 1/2, 1/4, 1/8 divided by their sum.

The authors' fusions contain batch norms. They are left out here, so that an item's loss does not depend on its batch and
accumulated batches give the same training. Pitfalls: the paper raises the weight over the first 20 epochs (--weight-warmup); the
fusions are trained, but not saved. With one pair of layers there is nothing to fuse: it is the same as hints at several scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkit import KdError, Term
from kdkit.tasks import at_least_float32
from kdkit_distill.feature.stage import LayerStage, term_name
from kdkit_distill.layers.projections import matched, matched_shapes, sequence_of
from kdkit_distill.precision import wide_pair
from kdkit_distill.signals import SignalPair
from kdkit_distill.weighting import Weight, weighted

if TYPE_CHECKING:
    from kdkit import Context

MOST_CHANNELS = 512
SCALES = (4, 2, 1)


def hierarchical_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of two maps at their own size, and pooled to 4x4, 2x2 and 1x1; weights 1, 1/2, 1/4, 1/8 divided by their sum.

    Args:
        student: (batch, channels, height, width); computed in float32 at least.
        teacher: of the same shape. Scales that are not below the height are left out.

    Returns:
        (batch,).

    >>> hierarchical_distance(torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 8, 8))
    tensor([1., 1.])
    """
    student, teacher = wide_pair(student, teacher)
    total, weight, held = (student - teacher).square().flatten(1).mean(1), 1.0, 1.0
    for scale in SCALES:
        if scale < student.shape[2]:
            weight /= 2
            # pooling is linear: pool the difference instead of both maps
            total = total + weight * F.adaptive_avg_pool2d(student - teacher, scale).square().flatten(1).mean(1)
            held += weight
    return total / held


class Fusion(nn.Module):
    """Fuses a student's map with the result of a deeper one (ABF), with learned weights for each place.

    Args:
        inputs: channels of the student's map.
        middle: channels in which maps are fused.
        outputs: channels of the teacher's map.
        deeper: whether there is a deeper map to fuse with.
    """

    def __init__(self, inputs: int, middle: int, outputs: int, deeper: bool):
        super().__init__()
        self.enter = nn.Conv2d(inputs, middle, 1)
        self.weigh = nn.Conv2d(2 * middle, 2, 1) if deeper else None
        self.leave = nn.Conv2d(middle, outputs, 3, padding=1)

    def forward(self, student: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """(for the teacher's map, for the next shallower fusion), both of the student's size."""
        one = self.enter(student)
        if self.weigh is not None and deeper is not None:
            two = F.interpolate(deeper, one.shape[2:], mode="nearest")
            shares = self.weigh(torch.cat([one, two], 1)).sigmoid()
            one = one * shares[:, :1] + two * shares[:, 1:]
        return self.leave(one), one


class Reviewer(nn.Module):
    """The fusions of all pairs, applied from the deepest to the first.

    Args:
        channels: (student's, teacher's) of each pair, in order of depth.
    """

    def __init__(self, channels: Sequence[tuple[int, int]]):
        super().__init__()
        middle = min(MOST_CHANNELS, channels[-1][0])
        self.fusions = nn.ModuleList(Fusion(student, middle, teacher, number < len(channels) - 1) for number, (student, teacher) in enumerate(channels))

    def forward(self, students: Sequence[Tensor]) -> list[Tensor]:
        """The student's maps, in order of depth, fused and in the teacher's channels."""
        found: list[Tensor] = []
        deeper: Tensor | None = None
        for fusion, student in zip(reversed(list(self.fusions)), reversed(students), strict=True):
            out, deeper = fusion(student, deeper)
            found.insert(0, out)
        return found


class Review(LayerStage):
    """Match the features of layers, the student's fused with its deeper ones, at several scales (ReviewKD).

    Loss per item: (1 - alpha) · label loss + alpha · weight · Σ over pairs of HCL(ABF(f_s, deeper), f_t). For maps only. Name the
    pairs in order of depth.
    """

    id: ClassVar[str] = "distill.review"
    known_as: ClassVar[tuple[str, ...]] = ("ReviewKD", "knowledge review")

    weight: Weight = weighted(1.0, pull=0.4, search=(0.1, 10))

    def modules(self, features: list[tuple[Tensor, Tensor]], context: Context) -> nn.ModuleDict:
        odd = next((student for student, _ in features if student.dim() != 4), None)
        if odd is not None:
            raise KdError(
                f"{self.title} fuses maps, (batch, channels, height, width), but a feature of the student has shape {tuple(odd.shape)}",
                "choose other layers: --layers student_layer=teacher_layer; for tokens and vectors: distill hints",
            )
        shapes = [matched_shapes(tuple(student.shape), tuple(teacher.shape), sequence_of(context.example)) for student, teacher in features]
        reviewer = Reviewer([(student[1], teacher[1]) for student, teacher in shapes])
        return nn.ModuleDict({"reviewer": reviewer.to(features[0][0].device, at_least_float32(features[0][0]).dtype)})

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        weights = next(seen.modules.parameters())
        fused = seen.modules["reviewer"]([student.to(weights.dtype) for _, student, _ in seen.features()])
        for pair, mine, (_, _, theirs) in zip(seen.pairs, fused, seen.features(), strict=True):
            yield Term(term_name("review", pair, seen), hierarchical_distance(*matched(*wide_pair(mine, theirs), sequence_of(seen.step.batch))))
