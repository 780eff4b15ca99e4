"""Learning rate schedules: the rate at each step, as a factor of --learning-rate."""

from __future__ import annotations

import math


def rate(schedule: str, index: int, total: int, warmup: float = 0.0) -> float:
    """The factor of the learning rate at optimizer step `index` of `total`.

    It rises in a straight line over the warm-up, its last step at 1, then stays (constant), falls in a straight line
    (linear) or in half a cosine (Loshchilov and Hutter, 2017). It would reach zero one step after the last, so no step
    is spent at a rate of zero.

    >>> [rate("linear", index, 6, warmup=1 / 3) for index in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    rising = math.ceil(warmup * total - 1e-9)
    if index < rising:
        return (index + 1) / rising
    if schedule == "constant":
        return 1.0
    gone = (index - rising) / max(1, total - rising)
    return 1.0 - gone if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * gone))
