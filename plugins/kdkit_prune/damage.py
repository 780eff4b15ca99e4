"""Damage: how far the outputs of a changed model are from those of the original, on the same data each time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from kdkit import Batch, KdError, Task
from kdkit.models import device_of, evaluating
from kdkit_prune.norm_statistics import norms_with_statistics, reestimate

STATISTICS = 2
"""Batches on which BatchNorm statistics are estimated again for each comparison; more change the order of damages little."""


class Damage:
    """The distance of outputs from those of the original model.

    Args:
        model: the original.
        batches: to compare on, on the model's device.
        statistics: estimate the BatchNorm statistics of a changed model again before it is compared; they stay so.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch], task: Task, statistics: bool = True):
        self.batches, self.task = batches, task
        self.statistics = batches[:STATISTICS] if statistics and any(norms_with_statistics(model)) else ()
        self.original = self._predictions(model)

    def of(self, changed: nn.Module) -> float:
        """The mean divergence over the batches."""
        self._settle(changed)
        pairs = zip(self.original, self._predictions(changed), strict=True)
        return sum(divergence(self.task, original, now) for original, now in pairs) / len(self.batches)

    def loss_of(self, changed: nn.Module) -> float:
        """The mean loss over labelled batches, in place of the divergence."""
        self._settle(changed)
        with evaluating(changed):
            losses = [self.task.losses(batch.call(changed), batch).sum() / (self.task.divisor(batch) or 1) for batch in self.batches]
        return float(torch.stack(losses).mean())

    def _settle(self, changed: nn.Module) -> None:
        if self.statistics:
            reestimate(changed, self.statistics)

    def _predictions(self, model: nn.Module) -> list[Tensor]:
        with evaluating(model):
            return [self.task.prediction(batch.call(model), batch).detach().float() for batch in self.batches]


def divergence(task: Task, original: Tensor, changed: Tensor) -> float:
    """How far outputs moved: the mean KL of the classes' distributions, in nats, or the squared distance relative to the original's variance.

    Args:
        original, changed: predictions of the task: (..., classes), or of images (batch, classes, height, width); or any numbers.
    """
    if task.predicts != "classes":
        return float((changed - original).pow(2).mean() / original.var(correction=0).clamp(min=1e-12))
    dim = 1 if original.dim() == 4 else -1
    logs, target = changed.log_softmax(dim), original.log_softmax(dim)
    return float((target.exp() * (target - logs)).sum(dim).mean())


def some_items(batches: Iterable[Batch], items: int, model: nn.Module) -> list[Batch]:
    """The first batches that hold so many items, on the model's device.

    Raises:
        KdError: there is no batch.
    """
    found: list[Batch] = []
    for batch in batches:
        found.append(batch.to(device_of(model)))
        if sum(each.size for each in found) >= items:
            break
    if not found:
        raise KdError("pruning got no batch of data", "%kd set --calibration {batches}; labels are not needed")
    return found
