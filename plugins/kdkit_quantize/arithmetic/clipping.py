"""Clipping: the range to quantize, chosen from a histogram of all values. A narrower range has finer steps and cuts off more.

- `minmax`: all of it.
- `percentile`: without the outermost share of values.
- `mse`: the smallest mean squared error, of rounding and of clipping together.
- `kl`, also `entropy`: the quantized distribution tells most of the original one (Migacz, "8-bit inference with TensorRT", GTC 2017).
- `admm`: the projection of ADMM quantization (Leng et al., "Extremely Low Bit Neural Network: Squeeze the Last Bit Out with ADMM", AAAI 2018,
  arXiv:1707.09870), which alternates between the integers and the scale that fits them best; from the range of `mse`, so it is never worse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdkit_quantize.arithmetic.affine import affine_of, dequantize, quantize
from kdkit_quantize.arithmetic.grid import Grid
from kdkit_quantize.arithmetic.observers import Histogram, Range

Bounds = tuple[float, float]
SHRINKS = np.linspace(0.02, 1, 99)
"""Shares of the whole range that `mse` tries."""
ROUNDS = 50
"""Of `admm`, at most; a few are usual."""


@dataclass(frozen=True)
class _Choice:
    """What a method chooses from."""

    seen: Histogram
    grid: Grid
    symmetric: bool
    percentile: float


def choose_range(seen: Range, method: str, grid: Grid, symmetric: bool = False, percentile: float = 99.99) -> Bounds:
    """The range to quantize.

    Args:
        seen: the values; a `Histogram` for all methods but minmax.
        method: one of `METHODS`.
        grid: the integers that the range gets.
        symmetric: whether the range is widened to ±its larger end afterwards.
        percentile: share of the values that stay inside, in per cent, for the method percentile.

    >>> seen = Histogram(); seen.update(np.append(np.linspace(-1, 1, 9999), 50.0))
    >>> choose_range(seen, "minmax", Grid(8)), choose_range(seen, "percentile", Grid(8), percentile=99.9)
    ((-1.0, 50.0), (-1.0, 1.0))
    """
    if not isinstance(seen, Histogram):
        return seen.lowest, seen.highest
    return METHODS[method](_Choice(seen, grid, symmetric, percentile))


def _everything(choice: _Choice) -> Bounds:
    return choice.seen.lowest, choice.seen.highest


def _percentiles(choice: _Choice) -> Bounds:
    seen = choice.seen
    cut = (100 - choice.percentile) / 200 * seen.counts.sum()
    upwards = np.cumsum(seen.counts)
    left, right = int(np.searchsorted(upwards, cut, side="right")), int(np.searchsorted(upwards, upwards[-1] - cut))
    return max((left - seen.bins) * seen.width, seen.lowest), min((right + 1 - seen.bins) * seen.width, seen.highest)


def _least_divergent(choice: _Choice) -> Bounds:
    seen = choice.seen
    magnitudes = seen.counts[seen.bins :] + seen.counts[seen.bins - 1 :: -1]
    # zero is exact in any range, and after a ReLU so frequent that it would hide all else
    magnitudes[0] = magnitudes[1]
    two_sided = choice.symmetric or seen.lowest < 0 < seen.highest
    limit = entropy_threshold(magnitudes, (choice.grid.steps + 1) // (2 if two_sided else 1)) * seen.width
    return max(-limit, seen.lowest), min(limit, seen.highest)


def _least_squares(choice: _Choice) -> Bounds:
    """First both ends shrink together, then each alone."""
    low, high = _everything(choice)

    def best_of(candidates: Iterable[Bounds]) -> Bounds:
        return min(candidates, key=lambda ends: squared_error(choice.seen, ends, choice.grid, choice.symmetric))

    best = best_of((low * share, high * share) for share in SHRINKS)
    if choice.symmetric:
        return best
    best = best_of([best, *((best[0], high * share) for share in SHRINKS)])
    return best_of([best, *((low * share, best[1]) for share in SHRINKS)])


def squared_error(seen: Histogram, ends: Bounds, grid: Grid, symmetric: bool = False) -> float:
    """The sum of (x − dequantized quantized x)² over all values, each taken as the middle of its bin.

    >>> seen = Histogram(); seen.update(np.linspace(-1, 1, 999))
    >>> squared_error(seen, (-1, 1), Grid(8)) < squared_error(seen, (-1, 1), Grid(4)) < squared_error(seen, (-0.5, 0.5), Grid(4))
    True
    """
    middles, counts = seen.points()
    scale, zero = affine_of(*ends, grid, symmetric)
    return float((counts * (middles - dequantize(quantize(middles, scale, zero, grid), scale, zero)) ** 2).sum())


def _alternating_projection(choice: _Choice) -> Bounds:
    """With the integers fixed, the best scale and zero point are a least-squares fit; with these fixed, the best integers are the nearest."""
    middles, counts = choice.seen.points()
    ends = _least_squares(choice)
    scale, zero = (float(each) for each in affine_of(*ends, choice.grid, choice.symmetric))
    for _ in range(ROUNDS if middles.size else 0):
        integers = quantize(middles, scale, zero, choice.grid).astype(np.float64)
        levels = integers - zero
        fitted = float((counts * middles * levels).sum() / max(1e-30, (counts * levels**2).sum()))
        if fitted <= 0 or fitted == scale:
            break
        scale = fitted
        if not choice.symmetric:
            zero = float(np.clip(np.round(np.average(integers - middles / scale, weights=counts)), choice.grid.lowest, choice.grid.highest))
    found = scale * (choice.grid.lowest - zero), scale * (choice.grid.highest - zero)
    return min(ends, found, key=lambda each: squared_error(choice.seen, each, choice.grid, choice.symmetric))


METHODS: Mapping[str, Callable[[_Choice], Bounds]] = {
    "minmax": _everything,
    "mse": _least_squares,
    "kl": _least_divergent,
    "entropy": _least_divergent,
    "percentile": _percentiles,
    "admm": _alternating_projection,
}
"""How a range is chosen, by name."""


def entropy_threshold(magnitudes: NDArray[np.integer], levels: int, step: int | None = None) -> int:
    """How many bins of a histogram of magnitudes to keep, so that `levels` steps over them tell most of the distribution.

    Args:
        magnitudes: (bins,) counts of |x|, from zero upwards.
        levels: quantization steps on one side of zero.
        step: between candidates, in bins; default: an eighth of `levels`.

    The divergence is KL(P ‖ Q): P the kept bins with all that was cut added to the last of them, Q the kept bins in `levels`
    steps, each spread evenly over its non-empty bins (Migacz, "8-bit inference with TensorRT", GTC 2017).

    >>> entropy_threshold(np.array([50, 30, 12, 5, 2, 1, 0, 0]), levels=4, step=1)
    4
    """
    used = int(np.flatnonzero(magnitudes).max(initial=0)) + 1
    if used <= levels:
        return used
    candidates = sorted({*range(levels, used, step or max(1, levels // 8)), used})
    return min(candidates, key=lambda kept: divergence(magnitudes, kept, levels))


def divergence(magnitudes: NDArray[np.integer], kept: int, levels: int) -> float:
    """KL(P ‖ Q) of keeping the first `kept` bins; see `entropy_threshold`.

    >>> divergence(np.array([4, 4, 4, 4]), kept=4, levels=2)
    0.0
    """
    inside = magnitudes[:kept].astype(np.float64)
    reference = inside.copy()
    reference[-1] += magnitudes[kept:].sum()
    steps = np.arange(kept) * levels // kept
    filled = (reference > 0).astype(np.float64)
    evenly = np.bincount(steps, inside, levels) / np.maximum(np.bincount(steps, filled, levels), 1)
    coarse = evenly[steps] * filled
    p, q = reference / reference.sum(), np.maximum(coarse / coarse.sum(), 1e-12) if coarse.sum() else np.full(kept, 1e-12)
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / q[seen])).sum())
