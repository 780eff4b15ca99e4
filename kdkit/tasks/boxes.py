"""Boxes: their forms, their overlap, and the assignment of some to others."""

from __future__ import annotations

import torch
from torch import Tensor

from kdkit.errors import KdError


def corners(boxes: Tensor, form: str) -> Tensor:
    """Boxes (..., 4) as corners x1, y1, x2, y2.

    >>> corners(torch.tensor([0.5, 0.5, 1.0, 1.0]), "cxcywh")
    tensor([0., 0., 1., 1.])
    """
    if form != "cxcywh":
        return boxes
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def iou(one: Tensor, two: Tensor) -> Tensor:
    """Intersection over union of corners, (n, 4) and (m, 4) -> (n, m), 0 to 1.

    >>> iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 2.0, 1.0], [3.0, 3.0, 4.0, 4.0]]))
    tensor([[0.5000, 0.0000]])
    """
    common, union = _common_and_union(one, two)
    return common / union.clamp_min(1e-9)


def generalized_iou(one: Tensor, two: Tensor) -> Tensor:
    """Generalized intersection over union of corners, (n, 4) and (m, 4) -> (n, m), -1 to 1.

    >>> generalized_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 2.0, 1.0], [3.0, 3.0, 4.0, 4.0]])).round(decimals=4)
    tensor([[ 0.5000, -0.6875]])
    """
    common, union = _common_and_union(one, two)
    hull = (torch.maximum(one[:, None, 2:], two[None, :, 2:]) - torch.minimum(one[:, None, :2], two[None, :, :2])).clamp_min(0).prod(-1)
    return common / union.clamp_min(1e-9) - (hull - union) / hull.clamp_min(1e-9)


def _common_and_union(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    """The areas of intersection and union of each pair of boxes."""
    common = (torch.minimum(one[:, None, 2:], two[None, :, 2:]) - torch.maximum(one[:, None, :2], two[None, :, :2])).clamp_min(0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(-1) for boxes in (one, two)]
    return common, areas[0][:, None] + areas[1][None] - common


def assign(costs: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of rows and columns, each at most once, with the least total cost (Hungarian assignment): (rows, columns) of min(rows, columns) pairs.

    Args:
        costs: (rows, columns) floats; nan and infinity count as the largest cost.

    Raises:
        KdError: scipy is not installed.

    >>> assign(torch.tensor([[3.0, 1.0], [0.0, 0.5], [5.0, 5.0]]))
    (tensor([0, 1]), tensor([1, 0]))
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise KdError("the assignment of boxes needs scipy, which is not installed", "pip install 'kdkit[detection]'") from error
    rows, columns = linear_sum_assignment(costs.detach().double().cpu().nan_to_num(1e12, 1e12, -1e12).numpy())
    return torch.from_numpy(rows).to(costs.device), torch.from_numpy(columns).to(costs.device)


def hits(boxes: Tensor, classes: Tensor, true: Tensor, true_classes: Tensor, overlap: float = 0.5) -> int:
    """How many detections, the best first, hit a true box of their class that no better one hit.

    >>> box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    >>> hits(box.repeat(2, 1), torch.tensor([1, 1]), box, torch.tensor([1]))
    1
    """
    if not len(boxes) or not len(true):
        return 0
    share = torch.where(classes[:, None] == true_classes[None].to(classes.device), iou(boxes, true.to(boxes)), 0.0)
    count = 0
    for row in share:
        best = int(row.argmax())
        if row[best] >= overlap:
            share[:, best] = 0.0
            count += 1
    return count
