"""The record: each term of the loss at each step, read from the device only now and then."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from kdkit.errors import KdError


class Record:
    """Collects the terms on the device; `flush` reads them all at once, so a step costs no wait for the device.

    Attributes:
        first: the terms' means at the beginning, and `last`: at the end, by name.
    """

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self._waiting: list[tuple[int, str, Tensor, float]] = []

    def add(self, step: int, name: str, value: Tensor, weight: float) -> None:
        """Note one term of one batch, its share of the step's mean."""
        self._waiting.append((step, name, value.detach(), weight))

    def flush(self) -> dict[str, float]:
        """The terms' means over the steps since the last flush, and `loss`, their weighted sum.

        Raises:
            KdError: a value is not finite; the message names the first such term and step.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return dict(self.last)
        numbers = torch.stack([value.float() for _, _, value, _ in waiting]).tolist()
        steps = len({step for step, *_ in waiting})
        sums: dict[str, float] = {"loss": 0.0}
        for (step, name, _, weight), number in zip(waiting, numbers, strict=True):
            if not math.isfinite(number):
                raise KdError(f"the loss is not finite: {name} is {number} at step {step + 1}")
            sums[name] = sums.get(name, 0.0) + number
            sums["loss"] += weight * number
        self.last = {name: total / steps for name, total in sums.items()}
        self.first = self.first or self.last
        return dict(self.last)

    def summary(self) -> str:
        """How each term went.

        >>> record = Record()
        >>> record.first, record.last = {"loss": 2.0}, {"loss": 0.5}
        >>> record.summary()
        'loss 2 -> 0.5'
        """
        return ", ".join(f"{name} {self.first[name]:.3g} -> {value:.3g}" for name, value in _without_repeats(self.last).items() if name in self.first)


def _without_repeats(figures: Mapping[str, float]) -> dict[str, float]:
    """With a single term the loss says it all, unless that term is weighted."""
    same = len(figures) == 2 and len(set(figures.values())) == 1
    return {name: value for name, value in figures.items() if not (same and name == "loss")}
