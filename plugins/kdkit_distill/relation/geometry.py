"""Geometry of the items of a batch: directions and distances."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1, (..., size); a row of zeros stays zero, and gets no gradient.

    >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    # divide by the largest entry first, or squares of 1e30 overflow and those of 1e-30 vanish
    top = rows.detach().abs().amax(-1, keepdim=True)
    rows = rows / torch.where(top > 0, top, 1.0)
    square = rows.square().sum(-1, keepdim=True)
    return rows * torch.where(square > 0, torch.where(square > 0, square, 1.0).rsqrt(), 0.0)


def distances(rows: Tensor) -> Tensor:
    """Euclidean distances between the rows, (items, items); at distance 0 the gradient is 0, not nan.

    >>> distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    tensor([[0., 5.],
            [5., 0.]])
    """
    # by differences: the Gram matrix loses the distance of near points to rounding
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
