"""What relations between the items of a batch are made of: their vectors, directions and distances.

Everything is computed in float32 at least, also under autocast: a Gram matrix in bfloat16 keeps three digits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from kdkit.tasks.contract import wide
from kdkit.tasks.numbers import mean_pooled


def full_precision(objective: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An objective whose products autocast leaves alone.

    >>> @full_precision
    ... def product(one, two):
    ...     return one @ two
    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     product(torch.ones(1, 1), torch.ones(1, 1)).dtype
    torch.float32
    """

    @functools.wraps(objective)
    def computed(first: Tensor, *others: object, **options: object) -> Tensor:
        with torch.autocast(first.device.type, enabled=False):
            return objective(first, *others, **options)

    return computed


def vectors(feature: Tensor, real: Tensor | None = None, pooled: bool = True) -> Tensor:
    """One vector an item, at least float32: (batch, size).

    Args:
        feature: (batch, size); tokens (batch, tokens, hidden), of which the mean is taken; maps (batch, channels, ...).
        real: (batch, tokens), not 0 where a token is no padding.
        pooled: take the mean over a map's places, as heads do; otherwise all its numbers in a row.

    >>> vectors(torch.tensor([[[1.0], [3.0], [99.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[2.]])
    >>> vectors(torch.zeros(2, 3, 4, 4)).shape
    torch.Size([2, 3])
    >>> vectors(torch.zeros(2, 3, 4, 4), pooled=False).shape
    torch.Size([2, 48])
    """
    if feature.dim() > 3 and pooled:
        return wide(feature).flatten(2).mean(-1)
    if feature.dim() != 3:
        return wide(feature).flatten(1)
    fits = real is not None and real.shape == feature.shape[:2]
    return mean_pooled(feature, real if fits and real is not None else torch.ones(feature.shape[:2]))


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1, (..., size); a row of zeros stays so, and gets no gradient.

    >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    # the largest entry first, or squares of 1e30 overflow and those of 1e-30 vanish
    top = rows.detach().abs().amax(-1, keepdim=True)
    rows = rows / torch.where(top > 0, top, 1.0)
    square = rows.square().sum(-1, keepdim=True)
    return rows * torch.where(square > 0, torch.where(square > 0, square, 1.0).rsqrt(), 0.0)


def distances(rows: Tensor) -> Tensor:
    """Euclidean distances between the rows, (items, items); at distance 0 the gradient is 0, and not nan.

    >>> distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    tensor([[0., 5.],
            [5., 0.]])
    """
    # by differences: the Gram matrix loses the distance of near points to rounding
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
