"""The jackknife: how far a figure of a sample may be from that of all data, also for figures that are no means.

Quenouille, "Notes on Bias in Estimation", 1956; Tukey, "Bias and confidence in not quite large samples", 1958.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from kdkit.measurement.confidence import t_quantile

GROUPS = 20
"""Groups of batches of which one is left out at a time."""

Sums = tuple[Mapping[str, Tensor], int]
"""Of a batch: the sums of its scores, and how many counted."""


def half_widths(batches: Sequence[Sums], summary: Callable[[Mapping[str, Tensor]], Mapping[str, float]], share: float = 1.0) -> dict[str, float]:
    """Half the width of each figure's 95 % confidence interval.

    The variance is (g - 1) / g · Σ (θ_i - mean θ)² over the g figures θ_i without one group of batches each; the interval is ± t(g - 1)
    times its root.

    Args:
        batches: of the sample; a group is every g-th batch.
        summary: the figures, from the means of scores.
        share: by which the interval is narrower: sqrt(1 - n / N) for n items of N.

    >>> import torch
    >>> scores = torch.randn(400, generator=torch.Generator().manual_seed(0)).split(4)
    >>> found = half_widths([({"loss": score.sum()}, 4) for score in scores], lambda means: {"loss": float(means["loss"])})
    >>> 0.07 < found["loss"] < 0.13
    True
    """
    groups = [_total(batches[number::GROUPS]) for number in range(min(GROUPS, len(batches)))]
    groups = [group for group in groups if group[1]]
    if len(groups) < 2:
        return {}
    sums, count = _total(groups)
    without = [summary({name: (value - group[name]) / (count - counted) for name, value in sums.items()}) for group, counted in groups]
    return {name: share * _half_width([figures[name] for figures in without]) for name in without[0]}


def half_width_of_groups(values: Sequence[float], share: float = 1.0) -> float:
    """Half the width of the interval of a figure that was computed for each of several groups alone.

    Args:
        share: as for `half_widths`.

    >>> round(half_width_of_groups([1.0, 2.0, 3.0]), 3)
    2.484
    """
    return share * t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _half_width(without: Sequence[float]) -> float:
    groups = len(without)
    middle = statistics.fmean(without)
    variance = (groups - 1) / groups * sum((figure - middle) ** 2 for figure in without)
    return t_quantile(groups - 1) * math.sqrt(variance)


def _total(parts: Sequence[Sums]) -> Sums:
    sums: dict[str, Tensor] = {}
    for part, _ in parts:
        for name, value in part.items():
            sums[name] = sums[name] + value if name in sums else value
    return sums, sum(counted for _, counted in parts)
