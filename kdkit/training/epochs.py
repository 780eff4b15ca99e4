"""Epochs: which batches a training takes, in which order, and how many optimizer steps they make."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from torch import nn

from kdkit.data import Batch, Data
from kdkit.errors import KdError
from kdkit.stages.stage import Stage
from kdkit.training.options import LoopOptions
from kdkit.training.part import TrainPart

if TYPE_CHECKING:
    from kdkit.stages.context import Context


class Epochs:
    """The batches of each epoch, in windows that make one optimizer step each.

    Args:
        processes: whose batches together make one step.

    Attributes:
        steps: optimizer steps in all, and `epoch_steps` in one epoch.
        left_out: whether a single item at the end of an epoch was left out.

    Raises:
        KdError: a stage needs labels and the data has none, or a part compares the items of batches that hold one.
    """

    def __init__(self, model: nn.Module, stages: Sequence[Stage], options: LoopOptions, parts: Mapping[str, TrainPart], context: Context, processes: int = 1):
        self.options, self.seed = options, context.seed
        self.data = _training_data(options, stages, context)
        self.window = options.accumulate * processes
        self.batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in model.modules())
        self.compares_items = next((title for title, part in parts.items() if part.whole_batch), "")
        self.left_out = False
        self._check_comparable()
        self.epoch_steps, self.steps = self._length()

    def windows(self, epoch: int) -> Iterator[list[Batch]]:
        """The batches of an epoch, as many together as make one optimizer step."""
        batches = self._batches(epoch)
        while window := list(islice(batches, self.window)):
            yield window

    def seed_of(self, epoch: int) -> int:
        """The seed of an epoch: a resumed training draws the numbers of an uninterrupted one."""
        return (self.seed * 1_000_003 + epoch) % 2**32

    def count(self) -> int:
        """How many epochs the training begins."""
        return math.ceil(self.steps / self.epoch_steps)

    def check(self, batch: Batch) -> None:
        """Refuse a batch of one item where a part compares items."""
        if self.compares_items and batch.size == 1:
            raise KdError("a batch of one item has nothing to compare it with", "use a larger --batch-size")

    def note(self) -> str:
        """What the report should say about items that were left out."""
        if not self.left_out:
            return ""
        return f"each epoch left out one item, which would have made a batch by itself; {'batch norm' if self.batch_norm else 'comparing items'} needs two"

    @property
    def _needs_two(self) -> bool:
        return self.batch_norm or bool(self.compares_items)

    def _check_comparable(self) -> None:
        title = self.compares_items
        if title and self.options.accumulate > 1:
            raise KdError(
                f"{title} compares the items of a batch, so batches can't be accumulated", "leave out --accumulate, and set --batch-size to what fits in memory"
            )
        if title and (self.options.batch_size or self.data.example().size) == 1:
            raise KdError(f"{title}: a batch of one item has nothing to compare it with", "use a larger --batch-size")

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch in its order, without a last single item where two are needed."""
        before = 1
        for batch in self.data.batches(shuffle=True, seed=self.seed_of(epoch), batch_size=self.options.batch_size):
            if before > 1 and self._needs_two and batch.size == 1:
                self.left_out = True
            else:
                before = batch.size
                yield batch

    def _length(self) -> tuple[int, int]:
        """Optimizer steps of an epoch, and in all."""
        batches = self.data.length(self.options.batch_size)
        if batches is None and self.options.steps:
            return self.options.steps, self.options.steps
        if batches is None or (self._needs_two and batches > 1 and (self.data.items or 0) % (batches - 1) == 1 % (batches - 1)):
            batches = sum(1 for _ in self._batches(0))
        an_epoch = math.ceil(batches / self.window)
        return an_epoch, self.options.steps or max(1, math.ceil(self.options.epochs * an_epoch - 1e-9))


def _training_data(options: LoopOptions, stages: Sequence[Stage], context: Context) -> Data:
    data = context.data(options.data)
    for stage in stages:
        if stage.required_inputs().labels and context.task.needs_labels and not data.labelled:
            raise KdError(
                f"{stage.title} needs labels, and {options.data} has none", "pass pairs of inputs and labels", "or learn from a teacher alone: distill soft --no-labels"
            )
    return data
