"""Parts: what a stage brings into the loop. They say what to train for; reduction, weights and steps are the loop's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.tasks import Task


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass of the model in training, as the parts see it.

    Attributes:
        batch: on the training device.
        output: what the model gave for it, with a graph.
        model: the bare model, for looking at its modules.
        task: how output and batch become predictions and losses.
        index: of the optimizer step, from 0; the batches of one accumulated step share it.
        progress: of the training: 0 at the first step, 1 at the last.
    """

    batch: Batch
    output: Any
    model: nn.Module
    task: Task
    index: int
    progress: float


@dataclass(frozen=True, slots=True)
class Term:
    """One named part of the loss, not reduced: the loop divides by what the whole optimizer step holds.

    Attributes:
        name: as it is shown beside its value.
        values: (batch,); or (batch, tokens), of which those count that `task.mask` names; without such a mask, an item
            counts with the mean of its values.
        weight: its factor in the loss; a callable is given the progress of the training.
        mask: bool, of the shape of `values`: which of them count, where that is not the task's mask. The mean is over
            what counts: see `TrainPart.counts` for masks under accumulation.
        labels: the values are the task's label losses; those count that have a label.
        penalty: `values` is one number about the weights alone, such as a norm; it counts once an optimizer step.
    """

    name: str
    values: Tensor
    weight: float | Callable[[float], float] = 1.0
    mask: Tensor | None = None
    labels: bool = False
    penalty: bool = False

    @classmethod
    def of_labels(cls, step: Step, weight: float | Callable[[float], float] = 1.0) -> Term:
        """What the labels say: the task's own loss."""
        return cls("label", step.task.losses(step.output, step.batch), weight, labels=True)


class TrainPart:
    """What one stage brings into the loop; every method may be left as it is.

    >>> class Labels(TrainPart):
    ...     def terms(self, step):
    ...         yield Term.of_labels(step)
    """

    whole_batch: bool = False
    """Whether an item's value depends on which items stand beside it; then batches can't be accumulated, and one item is no batch."""

    @cached_property
    def modules(self) -> nn.ModuleDict:
        """Modules that train beside the model, such as projectors; never saved with it.

        All that must survive an interrupted run belongs in them, as parameters or buffers.
        """
        return nn.ModuleDict()

    def open(self, model: nn.Module) -> None:
        """Get ready: make `modules`, attach hooks. The model is in train mode on the training device."""

    def terms(self, step: Step) -> Iterable[Term]:
        """The terms of the loss for one batch."""
        return ()

    def counts(self, batch: Batch) -> Mapping[str, int]:
        """How many values of a batch count, by the name of a term with a mask of its own.

        Known before the forward pass, so that a step of several accumulated batches equals one large batch; needed only
        there.
        """
        return {}

    def diagnose(self) -> Iterable[str]:
        """What this part knows of why the loss may not be finite, a line each; asked once it is not."""
        return ()

    def reweighted(self, term: str, factor: float, beside: str) -> str:
        """How a person multiplies the weight of one of this part's terms by a factor: an option of its line, such as "--weight 0.3".

        Asked where the first step shows that one term swamps another, `beside`, whose weight must stay; empty where no
        option does it.
        """
        return ""

    def after_step(self, step: Step) -> None:
        """After each optimizer step."""

    def after_epoch(self, epoch: int) -> None:
        """After each epoch, counted from 1."""

    def close(self, model: nn.Module) -> None:
        """Undo what `open` did beside the model, and finish the model; runs after an error too, even one within `open`."""
