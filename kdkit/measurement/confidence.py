"""Paired differences: their mean with a 95 % confidence interval, and a verdict based on the interval."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95
"""The confidence level of every interval."""
SEEDS = 5
"""Pairs where a verdict is asked for: at the same spread, the interval of 3 pairs is twice as wide as that of 5."""


def within_t(t: float, df: int) -> float:
    """P(|T| < t) of Student's t distribution.

    The finite series for integer degrees of freedom: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.

    Args:
        t: at least 0.
        df: degrees of freedom, at least 1.

    >>> within_t(1.0, 1), round(within_t(2.0, 2), 4)
    (0.5, 0.8165)
    """
    angle = math.atan(t / math.sqrt(df))
    sine, cosine = math.sin(angle), math.cos(angle)
    if df == 1:
        return 2 * angle / math.pi
    first = df % 2
    term = total = cosine if first else 1.0
    for number in range(2 + first, df - 1, 2):
        term *= cosine**2 * (number - 1) / number
        total += term
    return 2 / math.pi * (angle + sine * total) if first else sine * total


@functools.lru_cache
def t_quantile(df: int, level: float = LEVEL) -> float:
    """The t for which P(|T| < t) = level.

    >>> round(t_quantile(2), 4), round(t_quantile(30), 4)
    (4.3027, 2.0423)
    """
    low, high = 0.0, math.pi / 2
    for _ in range(200):  # bisection of atan(t / sqrt(df)), which is bounded, down to neighbouring floats
        middle = (low + high) / 2
        low, high = (middle, high) if within_t(math.sqrt(df) * math.tan(middle), df) < level else (low, middle)
    return math.sqrt(df) * math.tan(high)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval.

    Attributes:
        mean: mean of the differences.
        low, high: bounds of the interval; nan for a single difference or if a difference is not finite.
        n: number of differences.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval does not contain 0."""
        return self.low > 0 or self.high < 0


def t_interval(differences: Sequence[float]) -> Interval:
    """Mean ± t · s / sqrt(n): the paired t interval. It assumes independent, roughly normal differences.

    >>> found = t_interval([1.0, 2.0, 3.0])
    >>> round(found.low, 3), found.mean, round(found.high, 3)
    (-0.484, 2.0, 4.484)
    """
    mean, n = statistics.fmean(differences), len(differences)
    if n < 2 or not all(map(math.isfinite, differences)):
        return Interval(mean, math.nan, math.nan, n)
    half = t_quantile(n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def verdict(gains: Sequence[float]) -> str:
    """ "helps" or "hurts" only if the 95 % interval of the mean gain excludes 0.

    Args:
        gains: paired differences; positive means that the compared pipeline is better.

    >>> verdict([0.02, 0.03, 0.025]), verdict([0.1, 0.001, 0.001]), verdict([-0.02, -0.03, -0.025])
    ('helps', 'no effect shown (n = 3)', 'hurts')
    >>> verdict([0.05]), verdict([0.1, float("nan")])
    ('no verdict from one seed', 'no verdict: a figure is not finite')
    """
    if not all(map(math.isfinite, gains)):
        return "no verdict: a figure is not finite"
    if len(gains) < 2:
        return "no verdict from one seed"
    found = t_interval(gains)
    if not found.excludes_zero:
        return f"no effect shown (n = {found.n})"
    return "helps" if found.mean > 0 else "hurts"


def gap_share(control: float, compared: float, reference: float, better: str) -> float | None:
    """(compared - control) / (reference - control); None if the reference is not better than the control.

    >>> gap_share(0.5, 0.75, 1.0, "higher"), gap_share(0.9, 0.8, 0.7, "higher"), gap_share(4.0, 3.0, 2.0, "lower")
    (0.5, None, 0.5)
    """
    sign = 1.0 if better == "higher" else -1.0
    gap = sign * (reference - control)
    return sign * (compared - control) / gap if gap > 0 else None
