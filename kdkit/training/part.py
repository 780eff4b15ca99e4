"""Parts: a stage's contribution to the loop. A part computes loss terms; the loop reduces and weights them, and steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.renaming import warn_renamed
from kdkit.tasks import Task


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass of the model in training.

    Attributes:
        batch: on the training device, as the parts' `batch` returned it.
        output: the model's output for the batch, with its graph.
        model: the model itself, without accelerate's wrapper.
        task: turns output and batch into predictions and losses.
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
class Pull:
    """How strongly terms should act beside the labels: a factor of their weights is chosen from the gradients of the first steps.

    A published weight fits the nets and losses that it was published with; the ratio of two gradients carries over to others. The
    factor f is chosen so that f · ‖gradient of the sum of weight · value‖ = ratio · ‖gradient of the label loss‖.

    Attributes:
        group: terms of one part with the same group share one factor.
        ratio: above 0. Without labels in the loop, it is against the first terms of the loop in place of the label loss.
        beside: the group or name of terms of the same part to compare with in place of the label loss; with their weights.
        constant: the published weight; it is part of the terms' weights, and counts where no gradient can be measured.
        option: the option that sets this weight, for the report.
    """

    group: str
    ratio: float
    beside: str = ""
    constant: float = 1.0
    option: str = "--weight"


@dataclass(frozen=True, slots=True)
class Term:
    """One named term of the loss, not reduced: the loop computes the mean over the whole optimizer step.

    Attributes:
        name: in progress, reports and charts.
        values: (batch,); or (batch, tokens), averaged over the tokens in `task.mask`. Without such a mask, each item counts
            with the mean of its values.
        weight: its factor in the loss; a callable takes the progress of the training, 0 to 1.
        mask: bool, of the shape of `values`: which values are averaged, in place of the task's mask. With accumulated
            batches, see `TrainPart.counts`.
        labels: the values are the task's label losses; items without a label do not count.
        weighted: with `labels`: they are averaged as the task's loss is, with the class weights of a user's loss.
        penalty: `values` is a scalar that depends on the weights alone, such as a norm; added once per optimizer step.
        pull: the loop multiplies `weight` by a factor that it chooses from the gradients of the first steps.
        label_loss: the values are the loss on labels that the `pull` of other terms is compared with.
    """

    name: str
    values: Tensor
    weight: float | Callable[[float], float] = 1.0
    mask: Tensor | None = None
    labels: bool = False
    penalty: bool = False
    weighted: bool = False
    pull: Pull | None = None
    label_loss: bool = False

    @classmethod
    def from_labels(cls, step: Step, weight: float | Callable[[float], float] = 1.0) -> Term:
        """The task's loss on labels."""
        return cls("label", step.task.losses(step.output, step.batch), weight, labels=True, weighted=True, label_loss=True)

    @classmethod
    def of_labels(cls, step: Step, weight: float | Callable[[float], float] = 1.0) -> Term:
        """Deprecated: use `from_labels`."""
        warn_renamed("Term.of_labels", "from_labels")
        return cls.from_labels(step, weight)


class TrainPart:
    """One stage's contribution to the loop; override what you need.

    >>> class Labels(TrainPart):
    ...     def terms(self, step):
    ...         yield Term.from_labels(step)
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "reweighted" in vars(cls) and "option_for_weight" not in vars(cls):
            warn_renamed(f"{cls.__name__}.reweighted", "option_for_weight")
            cls.option_for_weight = cls.reweighted  # type: ignore[attr-defined, method-assign]

    whole_batch: bool = False
    """Whether an item's loss depends on the other items of its batch; then batches can't be accumulated, and need two items."""

    @cached_property
    def modules(self) -> nn.ModuleDict:
        """Extra modules that train with the model, such as projectors; never saved with it.

        Checkpoints hold their parameters and buffers: keep all state of the part there.
        """
        return nn.ModuleDict()

    def open(self, model: nn.Module) -> None:
        """Prepare the part: create `modules`, attach hooks. The model is in train mode on the training device."""

    def parameter_groups(self, model: nn.Module) -> Iterable[dict[str, Any]]:
        """Weights of the model or of `modules` that train at a rate of their own; called once, after `open`.

        Each dict holds `params`, and some of:

        - `lr_factor`: multiplies the learning rate, which follows the schedule as for all weights.
        - `maximize`: True ascends the loss, as an adversary does.
        - `weight_decay`: in place of --weight-decay.

        Weights without `requires_grad` are left out. --clip limits the norm of all gradients together, these included.

        Raises:
            KdError: (by the loop) a weight is in two groups, or belongs to neither the model nor `modules`.

        >>> class Scales(TrainPart):
        ...     def parameter_groups(self, model):
        ...         yield {"params": [model.scale], "lr_factor": 0.1, "weight_decay": 0.0}
        """
        return ()

    def batch(self, batch: Batch, model: nn.Module, progress: float) -> Batch:
        """Replace the batch before the forward pass: mixup, adversarial examples, text sampled from the model.

        The loop uses the returned batch for the forward pass, the terms and the counts. The parts of a group are called in
        order, each with what the previous one returned. All batches of an accumulated step are replaced before its first
        forward pass, so what `terms` needs must be in the batch, not in an attribute of the part.

        Args:
            batch: on the training device.
            model: in train mode; leave no gradient on its weights (`torch.autograd.grad`, `torch.no_grad`).
            progress: of the training, 0 to 1.

        >>> import torch
        >>> from dataclasses import replace
        >>> class Noise(TrainPart):
        ...     def batch(self, batch, model, progress):
        ...         return replace(batch, args=tuple(x + 0.1 * torch.randn_like(x) for x in batch.args))
        """
        return batch

    def terms(self, step: Step) -> Iterable[Term]:
        """The loss terms of one batch."""
        return ()

    def counts(self, batch: Batch) -> Mapping[str, int]:
        """How many values of a batch a term's own `mask` selects, by the term's name.

        Needed only with accumulated batches, where the loop must know it before the first forward pass.
        """
        return {}

    def diagnose(self) -> Iterable[str]:
        """Possible causes of a loss that is not finite, one line each; called when that happens."""
        return ()

    def option_for_weight(self, term: str, factor: float, other: str) -> str:
        """The stage's option that multiplies a term's weight by a factor, such as "--weight 0.3"; empty if there is none.

        Called when the gradient of `term` dominates that of another term, or the reverse.

        Args:
            other: the other term, whose weight the option must not change.
        """
        return ""

    def after_step(self, step: Step) -> None:
        """Called after each optimizer step, with its last batch."""

    def after_epoch(self, epoch: int) -> None:
        """Called after each epoch, counted from 1."""

    def close(self, model: nn.Module) -> None:
        """Undo what `open` did, such as hooks; also called after an error, even one in `open`."""
