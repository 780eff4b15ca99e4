"""Schedules of weights and temperatures over a training."""

from __future__ import annotations

import math
from typing import Literal

Shape = Literal["constant", "linear", "cosine"]


def between(shape: str, start: float, end: float, progress: float) -> float:
    """The value at `progress` (0 to 1) of a schedule from `start` to `end`; a constant schedule stays at `start`.

    >>> [between(shape, 4.0, 2.0, 0.5) for shape in ("constant", "linear", "cosine")]
    [4.0, 3.0, 3.0]
    """
    if shape == "constant":
        return start
    gone = progress if shape == "linear" else 0.5 * (1 - math.cos(math.pi * progress))
    return start + (end - start) * gone


def rising(warmup: float, progress: float) -> float:
    """A factor that rises linearly from 0 to 1 in the first `warmup` of the training, then stays 1.

    >>> rising(0.5, 0.25), rising(0.5, 0.75), rising(0.0, 0.0)
    (0.5, 1.0, 1.0)
    """
    return min(1.0, progress / warmup) if warmup else 1.0
