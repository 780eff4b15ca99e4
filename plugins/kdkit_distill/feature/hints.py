"""Hints: the student's intermediate features match the teacher's.

Romero et al., "FitNets: Hints for Thin Deep Nets", 2015 (arXiv:1412.6550). The paper trains up to the hint first and then on
soft labels; joint training, as in RepDistiller, is the default here, and `--hint-share` gives the paper's two stages.

Detectors: most places of a picture are background. --places within compares features in the true boxes alone, and --places near
also around them, where an anchor overlaps a box (`kdkit_distill.feature.imitation`). The paper's weight of 0.01 on the sum over
C channels is a --weight of 0.005 · C here.

Pitfalls: a deep hint regularises strongly, and a net that can't match it learns nothing else, so start with a middle layer or
a smaller weight. The projection learns too: part of what the student should learn can end up in it, and it is not saved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdkit import KdError, Needs, Step, Task, Term, param
from kdkit.tasks import Detection
from kdkit_distill.feature.imitation import anchors, box_mask, imitation_mask, masked_hint_distance
from kdkit_distill.feature.stage import ProjectedStage, TwoStages, counted, term_name
from kdkit_distill.precision import wide_pair
from kdkit_distill.signals import SignalPair
from kdkit_distill.weighting import Weight, weighted

if TYPE_CHECKING:
    from kdkit import Context


def hint_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of two features of one shape.

    Args:
        student: (batch, channels, height, width), (batch, tokens, hidden) or (batch, size); computed in float32 at least.
        teacher: of the same shape.

    Returns:
        (batch,), the mean over a map or vector; for tokens (batch, tokens).

    >>> import torch
    >>> hint_distance(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
    tensor([1., 1.])
    """
    student, teacher = wide_pair(student, teacher)
    squared = (student - teacher).square()
    return squared.mean(-1) if squared.dim() == 3 else squared.flatten(1).mean(1)


class Hints(ProjectedStage, TwoStages):
    """Match the features of layers, after a projection (FitNets).

    Loss per item: (1 - alpha) · label loss + alpha · weight · Σ over pairs of mean (r(f_s) - f_t)², r a 1x1 convolution or
    linear layer where widths differ. With --hint-share the first part of the training uses only hints, the rest everything except hints.
    With --places the mean is over the places of objects.
    """

    id: ClassVar[str] = "distill.hints"
    known_as: ClassVar[tuple[str, ...]] = ("FitNets", "FitNet")

    weight: Weight = weighted(100.0, pull=5, search=(1, 1000))
    hint_share: float = param(0.0, "share of the training, at its start, that uses only hints; the rest uses everything except hints; 0: both at once", ge=0, lt=1)
    places: Literal["all", "within", "near"] = param(
        "all", "detectors: the places of maps to compare: all; those within the true boxes; those near them, where an anchor overlaps one (FGFI)"
    )
    overlap: float = param(0.5, "--places near: an anchor's overlap with a box, as a share of the largest that the box has", ge=0, lt=1, advanced=True)
    anchor_lengths: tuple[float, ...] = param((2.0, 4.0, 8.0, 16.0), "--places near: √area of the anchors, in places of the map", advanced=True)

    def required_inputs(self) -> Needs:
        return super().required_inputs() if self.places == "all" else super().required_inputs() | Needs(labels=True)

    def incompatible_task(self, task: Task) -> str:
        return "" if self.places == "all" or isinstance(task, Detection) else f"--places {self.places} compares features at the true boxes of a detector; leave it out"

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.hint_share and self.share == 1 and not self.also:
            yield "--hint-share leaves nothing to learn from after the hints; keep labels (--alpha below 1), or add --also soft"
        if self.places != "all" and not self.labels:
            yield f"--places {self.places} takes the true boxes from the labels; leave out --no-labels"
        if not self.anchor_lengths or min(self.anchor_lengths) <= 0:
            yield "--anchor-lengths must be above 0; leave it out for 2 4 8 16"

    @property
    def first_share(self) -> float:
        return self.hint_share

    def modules(self, features: list[tuple[Tensor, Tensor]], context: Context) -> nn.ModuleDict:
        flat = next((pair for pair in features if max(each.dim() for each in pair) < 4), None)
        if self.places != "all" and flat is not None:
            raise KdError(
                f"{self.title}: --places {self.places} compares places of maps, and a layer returns {tuple(flat[0].shape)}",
                "choose layers that return maps: --layers student_layer=teacher_layer",
            )
        return super().modules(features, context)

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        if self.is_over(seen.step.progress):
            return
        for pair, (student, teacher) in zip(seen.pairs, self.projected(seen), strict=True):
            yield Term(term_name("hint", pair, seen), self._distance(student, teacher, seen.step))

    def _distance(self, student: Tensor, teacher: Tensor, step: Step) -> Tensor:
        if self.places == "all" or not isinstance(step.task, Detection):
            return counted(hint_distance(student, teacher), step)
        size = student.shape[2], student.shape[3]
        boxes = [each.to(student.device) for each in step.task.relative_boxes(step.batch)]
        if self.places == "within":
            masks = [box_mask(each, size) for each in boxes]
        else:
            around = anchors(size, self.anchor_lengths)
            masks = [imitation_mask(each, around, self.overlap) for each in boxes]
        return masked_hint_distance(student, teacher, torch.stack(masks))
