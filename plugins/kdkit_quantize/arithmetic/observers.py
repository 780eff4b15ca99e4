"""Observers: what is kept of values that stream by, in memory that does not grow with them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Range:
    """Smallest and largest value seen.

    >>> seen = Range(); seen.update(np.array([-1.0, 3.0])); seen.update(np.array([2.0])); seen.lowest, seen.highest
    (-1.0, 3.0)
    """

    def __init__(self) -> None:
        self.lowest, self.highest = np.inf, -np.inf

    def update(self, values: np.ndarray) -> None:
        """See some more values.

        Raises:
            ValueError: one is infinite or not a number.
        """
        low, high = float(values.min()), float(values.max())
        if not np.isfinite((low, high)).all():
            raise ValueError("not finite")
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)


class Histogram(Range):
    """Counts of values in bins around zero, whose width is a power of two.

    When a value falls outside, the width doubles and pairs of bins merge. Bins of the wider width are exactly pairs of the
    narrower one, so the counts are what one pass over all values would have given: order and batches don't matter.

    Args:
        bins: on either side of zero; even.

    Attributes:
        counts: (2 · bins,) of the values in each bin; bin i covers from (i − bins) · width.
        zeros: how many of the values are exactly 0, which any grid holds exactly.
    """

    def __init__(self, bins: int = 2048) -> None:
        super().__init__()
        self.bins, self.exponent, self.zeros = bins, -126, 0
        self.counts = np.zeros(2 * bins, dtype=np.int64)

    @property
    def width(self) -> float:
        """Of one bin."""
        return 2.0**self.exponent / self.bins

    def update(self, values: np.ndarray) -> None:
        """See some more values."""
        super().update(values)
        peak = max(abs(self.lowest), abs(self.highest))
        while peak and self.exponent < np.frexp(peak)[1]:
            self._widen()
        places = np.floor(values.ravel().astype(np.float64) / self.width).astype(np.int64) + self.bins
        self.counts += np.bincount(np.clip(places, 0, 2 * self.bins - 1), minlength=2 * self.bins)
        self.zeros += values.size - int(np.count_nonzero(values))

    def _widen(self) -> None:
        merged = self.counts.reshape(-1, 2).sum(1)
        self.counts = np.zeros_like(self.counts)
        self.counts[self.bins // 2 : self.bins + self.bins // 2] = merged
        self.exponent += 1

    def points(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The middles of the bins that hold values other than 0, and how many each holds.

        >>> seen = Histogram(bins=4); seen.update(np.array([0.0, 0.3, 1.0]))
        >>> seen.points()
        (array([0.25, 1.  ]), array([1, 1]))
        """
        counts = self.counts.copy()
        counts[self.bins] -= self.zeros
        kept = np.flatnonzero(counts)
        middles = (kept - self.bins + 0.5) * self.width
        return np.clip(middles, self.lowest, self.highest), counts[kept]

    def share_outside(self, low: float, high: float) -> float:
        """The share of all values in bins whose middle is below `low` or above `high`."""
        middles, counts = self.points()
        return float(counts[(middles < low) | (middles > high)].sum() / max(1, self.counts.sum()))
