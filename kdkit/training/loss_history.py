"""The loss history: each term of the loss at each step, read from the device now and then."""

from __future__ import annotations

import math
from itertools import accumulate

import torch
from torch import Tensor

from kdkit.errors import KdError
from kdkit.training.curve import Curve


class LossHistory:
    """Collects the terms on the device; `flush` reads them all at once, so a step costs no wait for the device.

    Attributes:
        intervals: (steps, means of the terms over them) for each flush.
        validation: (steps done, figures) for each evaluation on validation data.
    """

    def __init__(self) -> None:
        self.intervals: list[tuple[int, dict[str, float]]] = []
        self.validation: list[tuple[int, dict[str, float]]] = []
        self._waiting: list[tuple[int, str, Tensor, float]] = []

    def add(self, step: int, name: str, value: Tensor, weight: float) -> None:
        """Add one term of one batch: its share of the step's mean."""
        self._waiting.append((step, name, value.detach(), weight))

    def flush(self) -> dict[str, float]:
        """The terms' means over the steps since the last flush, and `loss`, their weighted sum; the previous ones if there were none.

        Raises:
            KdError: a value is not finite; the message names the first such term and step.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return dict(self.intervals[-1][1]) if self.intervals else {}
        numbers = torch.stack([value.float() for _, _, value, _ in waiting]).tolist()
        sums: dict[str, float] = {"loss": 0.0}
        for (step, name, _, weight), number in zip(waiting, numbers, strict=True):
            if not math.isfinite(number):
                raise KdError(f"the loss is not finite: {name} is {number} at step {step + 1}")
            sums[name] = sums.get(name, 0.0) + number
            sums["loss"] += weight * number
        steps = len({step for step, *_ in waiting})
        self.intervals.append((steps, {name: total / steps for name, total in sums.items()}))
        return dict(self.intervals[-1][1])

    def summary(self) -> str:
        """Each term in the first and in the last fifth of the steps.

        >>> history = LossHistory()
        >>> history.intervals = [(1, {"loss": 2.0}), (3, {"loss": 1.0}), (1, {"loss": 0.5})]
        >>> history.summary()
        'loss 2 -> 0.5'
        """
        if not self.intervals:
            return ""
        first, last = _first_fifth(self.intervals), _first_fifth(self.intervals[::-1])
        # a single term of weight 1 equals the loss
        names = [name for name in last if name != "loss" or len(set(last.values())) > 1 or len(last) == 1]
        return ", ".join(f"{name} {first[name]:.3g} -> {last[name]:.3g}" for name in names if name in first)

    def as_curve(self) -> Curve:
        """The history as a chart."""
        done = accumulate(steps for steps, _ in self.intervals)
        return Curve.of([*((step, figures) for step, (_, figures) in zip(done, self.intervals, strict=True)), *self.validation])


def _first_fifth(intervals: list[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """The means over the first fifth of the steps or, with long intervals, a little more."""
    left = sum(steps for steps, _ in intervals) / 5
    sums: dict[str, float] = {}
    taken = 0
    for steps, figures in intervals:
        for name, figure in figures.items():
            sums[name] = sums.get(name, 0.0) + steps * figure
        taken += steps
        if taken >= left:
            break
    return {name: total / taken for name, total in sums.items()}
