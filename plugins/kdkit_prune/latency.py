"""Latency: the time of a changed model against the original's, on this machine."""

from __future__ import annotations

import time

from torch import nn

from kdkit import Batch
from kdkit.models import evaluating

ROUNDS = 9
"""Calls of each model at least; the shortest counts, because other work can only make a call longer."""

BUDGET_S = 0.5
"""Seconds for the calls of both models, where more rounds fit."""


def time_share(changed: nn.Module, original: nn.Module, batch: Batch) -> float:
    """The shortest time of a changed model over that of the original, in turn, in eval mode in torch.

    >>> from torch import ones
    >>> small, large = nn.Linear(8, 8), nn.Sequential(*[nn.Linear(2000, 2000) for _ in range(4)])
    >>> time_share(nn.Sequential(large[0]), large, Batch((ones(1, 2000),))) < 0.7
    True
    """
    shortest = {id(changed): float("inf"), id(original): float("inf")}
    with evaluating(original), evaluating(changed):
        for model in (original, changed):
            batch.call(model)
        began, rounds = time.perf_counter(), 0
        while rounds < ROUNDS or time.perf_counter() - began < BUDGET_S:
            for model in (original, changed):
                shortest[id(model)] = min(shortest[id(model)], _seconds(model, batch))
            rounds += 1
    return shortest[id(changed)] / shortest[id(original)]


def _seconds(model: nn.Module, batch: Batch) -> float:
    began = time.perf_counter()
    batch.call(model)
    return time.perf_counter() - began
