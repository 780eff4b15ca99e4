"""k-means of numbers: the few values that are nearest to many.

Lloyd, "Least squares quantization in PCM", 1982; for weights: Han, Mao, Dally, "Deep Compression", 2016 (arXiv:1510.00149).
"""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_values(values: Tensor, count: int, steps: int = 60) -> tuple[Tensor, Tensor]:
    """Values that stand for others with a small sum of squared errors, and which of them stands for each.

    They begin evenly between the smallest and the largest value, which keeps the few large weights (section 3.2 of the paper), and each step moves
    them to the mean of the values nearest to them. One without values stays where it is.

    Args:
        values: (n,), floating.
        count: of values that stand for others; fewer if there are fewer different values.
        steps: at most.

    Returns:
        ((k,) ascending, float32; (n,) indices, int64), with k ≤ count.

    >>> nearest_values(torch.tensor([0.0, 0.2, 5.0, 5.2]), 2)
    (tensor([0.1000, 5.1000]), tensor([0, 0, 1, 1]))
    """
    values = values.detach().float()
    different = values.unique()
    if len(different) <= count:
        return different, torch.searchsorted(different, values)
    centroids = torch.linspace(float(values.min()), float(values.max()), count)
    ordered = values.sort().values
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), ordered.double().cumsum(0)])
    for _ in range(steps):
        ends = torch.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        edges = torch.cat([torch.tensor([0]), ends, torch.tensor([len(ordered)])])
        sizes = edges.diff()
        means = ((sums[edges[1:]] - sums[edges[:-1]]) / sizes.clamp(min=1)).float()
        moved = torch.where(sizes > 0, means, centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved.sort().values
    return centroids, torch.searchsorted((centroids[1:] + centroids[:-1]) / 2, values)
