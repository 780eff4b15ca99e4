"""Imitation masks: the places of a map at or near objects, where a detector's features are worth imitating.

Most of a picture is background, and the error of a mean over all places is mostly its own. Wang et al., "Distilling Object
Detectors with Fine-grained Feature Imitation", CVPR 2019 (arXiv:1906.03609): for each true box the places count at which an anchor
overlaps it by more than ψ = 0.5 of the largest overlap that any anchor has with it. Guo et al., "Distilling Object Detectors via
Decoupled Features", CVPR 2021 (arXiv:2103.14475): the places within the boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kdkit.tasks import iou
from kdkit_distill.precision import wide_pair

RATIOS = (0.5, 1.0, 2.0)
"""Height / width of the anchors, as in the paper."""


def box_mask(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The places of a map that boxes overlap: (n, 4) corners as shares of the picture -> (height, width) bool.

    >>> box_mask(torch.tensor([[0.5, 0.0, 1.0, 0.4]]), (2, 4))
    tensor([[False, False,  True,  True],
            [False, False, False, False]])
    """
    rows, columns = (torch.arange(length, device=boxes.device) for length in size)
    scaled = boxes * boxes.new_tensor([size[1], size[0], size[1], size[0]])
    across = (scaled[:, :1] < columns + 1) & (scaled[:, 2:3] > columns)
    down = (scaled[:, 1:2] < rows + 1) & (scaled[:, 3:] > rows)
    return (down[:, :, None] & across[:, None]).any(0)


def anchors(size: tuple[int, int], lengths: Sequence[float]) -> Tensor:
    """Anchors around the centre of each place, as shares of the picture: (height, width, lengths · ratios, 4) corners.

    Args:
        lengths: √area of the anchors, in places.

    >>> anchors((1, 2), [1.0])[0, 0, 1]
    tensor([0.0000, 0.0000, 0.5000, 1.0000])
    """
    height, width = size
    sides = torch.tensor([[length / math.sqrt(ratio), length * math.sqrt(ratio)] for length in lengths for ratio in RATIOS])
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    centres = torch.stack([columns, rows], -1)[:, :, None]
    return torch.cat([centres - sides / 2, centres + sides / 2], -1) / torch.tensor([width, height, width, height])


def imitation_mask(boxes: Tensor, anchors: Tensor, share: float = 0.5) -> Tensor:
    """The places at which an anchor overlaps a box by more than `share` of the largest overlap with that box: (height, width) bool.

    Args:
        boxes: (n, 4) corners.
        anchors: (height, width, anchors, 4) corners, in the units of the boxes.
        share: ψ of the paper, 0 to 1; a larger one selects fewer places.

    >>> imitation_mask(torch.tensor([[0.5, 0.0, 1.0, 1.0]]), anchors((1, 2), [1.0]))
    tensor([[False,  True]])
    """
    overlap = iou(anchors.reshape(-1, 4).to(boxes), boxes)
    if not len(boxes):
        return overlap.new_zeros(anchors.shape[:2], dtype=torch.bool)
    return (overlap > share * overlap.amax(0)).any(1).view(anchors.shape[:3]).any(-1)


def masked_hint_distance(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The mean squared difference of two maps over the channels and the places of a mask; 0 for an item without such places.

    The paper's loss, 1 / (2 N) · Σ over the N places and the channels, is channels / 2 times as large.

    Args:
        student: (batch, channels, height, width); computed in float32 at least.
        teacher: of the same shape.
        mask: (batch, height, width) bool.

    Returns:
        (batch,).

    >>> mask = torch.tensor([[[True, False]], [[False, False]]])
    >>> masked_hint_distance(torch.tensor([2.0, 5.0]).expand(2, 3, 1, 2), torch.zeros(2, 3, 1, 2), mask)
    tensor([4., 0.])
    """
    student, teacher = wide_pair(student, teacher)
    apart = (student - teacher).square().mean(1)
    return torch.where(mask, apart, 0.0).sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)
