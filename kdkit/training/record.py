"""The record: each term of the loss at each step, read from the device only now and then."""

from __future__ import annotations

import math
from itertools import accumulate

import torch
from torch import Tensor

from kdkit.curve import Curve
from kdkit.errors import KdError


class Record:
    """Collects the terms on the device; `flush` reads them all at once, so a step costs no wait for the device.

    Attributes:
        curve: (steps, means of the terms over them) for each flush.
        validation: (steps done, figures) for each look at validation data.
    """

    def __init__(self) -> None:
        self.curve: list[tuple[int, dict[str, float]]] = []
        self.validation: list[tuple[int, dict[str, float]]] = []
        self._waiting: list[tuple[int, str, Tensor, float]] = []

    def add(self, step: int, name: str, value: Tensor, weight: float) -> None:
        """Note one term of one batch, its share of the step's mean."""
        self._waiting.append((step, name, value.detach(), weight))

    def flush(self) -> dict[str, float]:
        """The terms' means over the steps since the last flush, and `loss`, their weighted sum; the last ones if there were none.

        Raises:
            KdError: a value is not finite; the message names the first such term and step.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return dict(self.curve[-1][1]) if self.curve else {}
        numbers = torch.stack([value.float() for _, _, value, _ in waiting]).tolist()
        sums: dict[str, float] = {"loss": 0.0}
        for (step, name, _, weight), number in zip(waiting, numbers, strict=True):
            if not math.isfinite(number):
                raise KdError(f"the loss is not finite: {name} is {number} at step {step + 1}")
            sums[name] = sums.get(name, 0.0) + number
            sums["loss"] += weight * number
        steps = len({step for step, *_ in waiting})
        self.curve.append((steps, {name: total / steps for name, total in sums.items()}))
        return dict(self.curve[-1][1])

    def summary(self) -> str:
        """How each term went, from the first fifth of the steps to the last.

        >>> record = Record()
        >>> record.curve = [(1, {"loss": 2.0}), (3, {"loss": 1.0}), (1, {"loss": 0.5})]
        >>> record.summary()
        'loss 2 -> 0.5'
        """
        if not self.curve:
            return ""
        first, last = _beginning(self.curve), _beginning(self.curve[::-1])
        # with a single term of weight 1 the loss says nothing new
        names = [name for name in last if name != "loss" or len(set(last.values())) > 1 or len(last) == 1]
        return ", ".join(f"{name} {first[name]:.3g} -> {last[name]:.3g}" for name in names if name in first)

    def told(self) -> Curve:
        """All of it over the steps."""
        done = accumulate(steps for steps, _ in self.curve)
        return Curve.of([*((step, figures) for step, (_, figures) in zip(done, self.curve, strict=True)), *self.validation])


def _beginning(curve: list[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """The means over the first fifth of the steps, or a little more."""
    left = sum(steps for steps, _ in curve) / 5
    sums: dict[str, float] = {}
    taken = 0
    for steps, figures in curve:
        for name, figure in figures.items():
            sums[name] = sums.get(name, 0.0) + steps * figure
        taken += steps
        if taken >= left:
            break
    return {name: total / taken for name, total in sums.items()}
