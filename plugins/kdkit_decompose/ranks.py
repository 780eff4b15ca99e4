"""Ranks: how many singular values each layer keeps, by share of parameters, by energy, or out of one budget.

A weight of shape (out, in) costs out·in parameters, as a product of rank r it costs r·(out + in): from rank
`break_even` on, the product is the dearer one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor


def price(shape: tuple[int, int], rank: int) -> int:
    """Parameters of a product of that rank.

    >>> price((30, 20), 4)
    200
    """
    return rank * sum(shape)


def break_even(shape: tuple[int, int]) -> int:
    """The smallest rank at which a product saves nothing.

    >>> break_even((30, 20)), price((30, 20), 12), 30 * 20
    (12, 600, 600)
    """
    return -(-math.prod(shape) // sum(shape))


def by_ratio(shape: tuple[int, int], ratio: float, step: int = 1) -> int:
    """The largest multiple of `step` whose product has at most `ratio` of the layer's parameters; at least `step`.

    >>> by_ratio((30, 20), 0.5)
    6
    """
    rank = int(ratio * math.prod(shape) / sum(shape) + 1e-9)
    return max(rank // step * step, step)


def by_energy(values: Tensor, energy: float, step: int = 1) -> int:
    """The smallest multiple of `step` that keeps `energy` of the sum of squared singular `values` (rank,), descending.

    >>> import torch
    >>> by_energy(torch.tensor([3.0, 2.0, 1.0]), 0.9)    # 9 + 4 of 14 are 0.93
    2
    """
    squares = values.double().square()
    kept = squares.cumsum(0) >= energy * squares.sum() * (1 - 1e-12)
    rank = int(kept.int().argmax()) + 1 if kept.any() else len(values)
    return -(-rank // step) * step


def by_budget(shapes: Mapping[str, tuple[int, int]], values: Mapping[str, Tensor], budget: float, step: int = 1) -> dict[str, int]:
    """Ranks that share out `budget` of all layers' parameters, largest normalised squared singular values first.

    Every layer has energy 1, and each `step` of its singular values a share of it that costs step·(out + in)
    parameters; the shares are taken by what they bring per parameter, which is the best choice up to the last one
    that does not fit. A layer that reaches break-even is left as it is at its own price, and so costs nothing more.

    >>> import torch
    >>> shapes = {"sharp": (8, 8), "flat": (8, 8)}
    >>> by_budget(shapes, {"sharp": torch.tensor([10.0] + 7 * [0.1]), "flat": torch.ones(8)}, budget=0.5)
    {'sharp': 1, 'flat': 3}
    """
    left = int(budget * sum(map(math.prod, shapes.values())) + 1e-9)
    ranks = dict.fromkeys(shapes, 0)
    offers = []
    for name, shape in shapes.items():
        squares = values[name].double().square()
        shares = (squares / squares.sum().clamp(min=1e-300)).split(step)
        offers += [(-float(share.sum()) / sum(shape), index, name) for index, share in enumerate(shares)]
    for _, index, name in sorted(offers, key=lambda offer: (offer[1] > 0, *offer)):  # the first share of every layer is no choice
        now, then = (min(price(shapes[name], rank * step), math.prod(shapes[name])) for rank in (index, index + 1))
        if ranks[name] == index * step and then - now <= left:
            ranks[name] += step
            left -= then - now
    return ranks
