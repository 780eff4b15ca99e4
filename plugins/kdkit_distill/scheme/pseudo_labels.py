"""Pseudo-labels: the teacher labels the items without a label, where it is sure enough, and the labels teach the rest.

Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks", 2013 (ICML workshop).
The threshold and the mean over all unlabelled items, sure or not: Sohn et al., "FixMatch", 2020 (arXiv:2001.07685). A teacher
that labels for a student: Xie et al., "Self-training with Noisy Student", 2020 (arXiv:1911.04252).

Pitfalls:

- A threshold says nothing to a badly calibrated teacher: look at the share of items that passed it, which the notes tell.
- Classes that the teacher is never sure of get no items at all; a lower threshold, or --form soft, keeps them.
- Hard labels throw away what the teacher knows of the other classes; soft ones keep it.
- With --labelled, batch norm sees two batches a step, one of each set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdkit.contract import Needs, param
from kdkit.data import Batch, Data
from kdkit.data.sets import own_randomness
from kdkit.errors import KdError
from kdkit.tasks import CausalLM, Task
from kdkit.tasks.classes import cross_entropy
from kdkit.tasks.contract import IGNORED, wide
from kdkit.training import Step, Term, TrainPart
from kdkit_distill.lesson import Lesson
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.response.stage import ResponseStage
from kdkit_distill.signals import Exchange

if TYPE_CHECKING:
    from kdkit.context import Context


def confident(teacher: Tensor, threshold: float) -> Tensor:
    """Where the teacher gives its first choice a probability of at least `threshold`: logits (..., classes) -> bool (...).

    >>> confident(torch.tensor([[0.0, 9.0], [0.0, 0.1]]), 0.9)
    tensor([ True, False])
    """
    return sureness(teacher) >= threshold


def sureness(teacher: Tensor) -> Tensor:
    """The probability that the teacher gives its first choice: logits (..., classes) -> (...).

    >>> sureness(torch.zeros(1, 4))
    tensor([0.2500])
    """
    return wide(teacher).softmax(-1).amax(-1)


def pseudo_labels(student: Tensor, teacher: Tensor, threshold: float = 0.9, form: str = "hard", temperature: float = 1.0) -> Tensor:
    """What the student's answers cost against the teacher's where that is sure, and 0 elsewhere.

    hard: -log softmax(student)[teacher's first choice]; soft: T² · KL(softmax(teacher / T) ‖ softmax(student / T)).

    Args:
        student: logits (..., classes).
        teacher: logits of the same shape.
        threshold: least probability of the teacher's first choice, at temperature 1.
        form: "hard" or "soft".
        temperature: T of the soft form.

    Returns:
        (...), at least float32.

    >>> pseudo_labels(torch.zeros(2, 2), torch.tensor([[0.0, 9.0], [0.0, 0.1]])).exp()
    tensor([2., 1.])
    """
    taught = cross_entropy(student, teacher.argmax(-1)) if form == "hard" else soft_labels(student, teacher, temperature)
    return torch.where(confident(teacher, threshold), taught, 0.0)


def unlabelled(task: Task, batch: Batch) -> Tensor:
    """What has no label: (batch,) bool; for token tasks (batch, tokens), without padding.

    An item of tokens has no label if all its labels are -100: -100 here and there marks tokens that shall not count.

    >>> from kdkit.tasks import Classification
    >>> unlabelled(Classification(), Batch((torch.zeros(2, 3),), labels=torch.tensor([1, -100])))
    tensor([False,  True])
    """
    labels = batch.labels
    bare = torch.ones(batch.size, dtype=torch.bool, device=batch.device)
    if isinstance(labels, Tensor):
        bare = torch.zeros_like(bare) if labels.is_floating_point() else (labels == IGNORED).reshape(batch.size, -1).all(1)
    real = task.mask(replace(batch, labels=None))
    return bare if real is None else real & bare[:, None]


class PseudoLabels(ResponseStage):
    """Learn labels that the teacher gives where it is sure, beside those that are there.

    loss = (1 - alpha) · label loss of the labelled items + alpha · mean over the unlabelled items of
    [max softmax(z_t) >= threshold] · (hard: cross entropy with the teacher's class; soft: T² · KL(teacher ‖ student)).

    Items have no label where the training data has none, or a label of -100. A labelled set beside it is named by --labelled: each
    step takes a batch of it too. --no-labels treats every item as unlabelled.
    """

    id: ClassVar[str] = "distill.pseudo-labels"
    sample_options: ClassVar[str] = "--data {unlabelled} --labelled {labelled} --control {labelled}"
    tried_as: ClassVar[str] = "--no-labels --threshold 0"

    alpha: float = param(0.5, "share of the teacher's labels in the loss; the rest is the labels'", gt=0, le=1, search=(0.1, 0.9))
    threshold: float = param(0.9, "least probability of the teacher's first choice that makes it a label", ge=0, le=1, search=(0.5, 0.99))
    form: Literal["hard", "soft"] = param("hard", "learn the teacher's class, or its whole distribution")
    temperature: float = param(1.0, "softens both distributions of the soft form", gt=0, search=(1, 8))
    labelled: str | None = param(None, "data with labels, of which each step takes a batch beside the unlabelled one", refers="data")

    def needed(self) -> Needs:
        return replace(super().needed(), labels=False)

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.labelled and self.share == 1:
            yield f"--labelled {self.labelled} has no share in the loss; leave out --no-labels, and make --alpha less than 1"

    def unsuited(self, task: Task) -> str:
        if isinstance(task, CausalLM):
            return "a language model's labels are its own inputs, so that no item is without"
        return super().unsuited(task)

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return HalfLabelled(self, context)

    def without(self, step: Step) -> Tensor:
        """Which items, or tokens, of a batch the teacher may label."""
        return unlabelled(step.task, step.batch if self.labels else replace(step.batch, labels=None))

    def modules(self, features: list[tuple[Tensor, Tensor]], context: Context) -> nn.ModuleDict:
        return nn.ModuleDict({"tally": Tally()})

    def terms(self, seen: Exchange) -> Iterable[Term]:
        student, teacher = seen.student.logits, seen.teacher.dense
        without = self.without(seen.step)
        tally = seen.modules["tally"]
        assert isinstance(tally, Tally)
        tally.add(without, sureness(teacher), self.threshold)
        yield Term("pseudo", pseudo_labels(student, teacher, self.threshold, self.form, self.temperature_at(seen.step.progress)), mask=without)


class Tally(nn.Module):
    """How much was without a label, and how much of that passed the threshold; it survives an interrupted training."""

    without: Tensor
    passed: Tensor
    surest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("surest", torch.zeros(()))
        self.register_buffer("without", torch.zeros((), dtype=torch.int64))
        self.register_buffer("passed", torch.zeros((), dtype=torch.int64))

    def add(self, without: Tensor, sureness: Tensor, threshold: float) -> None:
        """Count the items, or tokens, of a batch, of which the teacher is so sure."""
        self.without += without.sum()
        self.passed += (without & (sureness >= threshold)).sum()
        self.surest = torch.maximum(self.surest, torch.where(without, sureness, 0.0).amax().to(self.surest.dtype))

    def __str__(self) -> str:
        seen, passed = int(self.without), int(self.passed)
        return f"{passed} of {seen} ({passed / seen:.0%})" if seen else "nothing was without a label"


class Cycle:
    """A labelled set gone through again and again: which batch comes follows from the step's number alone.

    >>> cycle = Cycle(Data(lambda: [(torch.zeros(1, 1), [label]) for label in range(3)], "three"), seed=0, batch_size=None)
    >>> [cycle.at(step).labels.item() for step in (0, 1, 4, 4, 2)]
    [0, 1, 1, 1, 2]
    """

    def __init__(self, data: Data, seed: int, batch_size: int | None):
        self.data, self.seed, self.batch_size = data, seed, batch_size
        self.length = data.length(batch_size) or sum(1 for _ in self._pass(0))
        self.step = -1
        self.batch: Batch | None = None
        self.batches: Iterator[Batch] = iter(())

    def _pass(self, number: int) -> Iterator[Batch]:
        seed = (self.seed * 1_000_003 + number) % 2**32
        # augmentation must not draw from the training's generators: a resumed one goes through other batches to get here
        return own_randomness(lambda: self.data.batches(shuffle=True, seed=seed, batch_size=self.batch_size), seed)

    def at(self, step: int) -> Batch:
        """The batch of a step; steps in order cost nothing, others a pass over those before them."""
        if step != self.step or self.batch is None:
            number, place = divmod(step, self.length)
            if step != self.step + 1 or not place:
                self.batches = islice(self._pass(number), place, None)
            self.batch, self.step = next(self.batches), step
        return self.batch


class HalfLabelled(Lesson):
    """A lesson in which labels and teacher speak of different items."""

    stage: PseudoLabels
    cycle: Cycle | None = None

    def open(self, model: nn.Module) -> None:
        name = self.stage.labelled
        if name and not self.context.data(name).labelled:
            raise KdError(f"--labelled {name} names data without labels", "pass pairs of inputs and labels")
        if not self._some_unlabelled():
            raise KdError(
                f"all items of {self.stage.data} have a label, so the teacher has none to give",
                "--no-labels leaves all items to the teacher",
                "or mark those it shall label with -100, or pass them without labels as --data and the others as --labelled",
            )
        super().open(model)
        if name:
            self.cycle = Cycle(self.context.data(name), self.context.seed, self.stage.batch_size)

    def _some_unlabelled(self) -> bool:
        """Whether the teacher may label anything; looks no further than the first such item, and of a stream no further than the training."""
        data = self.context.data(self.stage.data)
        bound = self.stage.steps * self.stage.accumulate if self.stage.steps and data.items is None else None
        return not self.stage.labels or any(bool(unlabelled(self.context.task, batch).any()) for batch in islice(data.batches(), bound))

    def counts(self, batch: Batch) -> Mapping[str, int]:
        return {"pseudo": int(unlabelled(self.context.task, batch if self.stage.labels else replace(batch, labels=None)).sum())}

    def terms(self, step: Step) -> Iterator[Term]:
        # before another forward pass of the student: what its layers gave in this one is waiting to be taken
        yield from self.taught(step)
        if self.stage.share == 1:
            return
        if step.batch.labels is not None:
            yield Term.of_labels(step, 1 - self.stage.share)
        if self.cycle is not None:
            # of another batch than the step's, so that it counts as one number a step
            yield Term("labelled", mean_loss(step.model, self.cycle.at(step.index).to(step.batch.device), step.task), 1 - self.stage.share, penalty=True)

    def after_epoch(self, epoch: int) -> None:
        super().after_epoch(epoch)
        tally = self.techniques[0].modules["tally"]
        assert isinstance(tally, Tally)
        if int(tally.without) and not int(tally.passed):
            raise KdError(
                f"the teacher is not sure enough of any of {int(tally.without)} items without a label: it gives its first choice {float(tally.surest):.2g} at most, "
                f"and --threshold is {self.stage.threshold:g}",
                f"--threshold {0.9 * float(tally.surest):.1g} takes the surest of them",
                "or learn all that it says: distill soft --no-labels",
            )

    def close(self, model: nn.Module) -> None:
        super().close(model)
        modules = self.techniques[0].modules
        if "tally" in modules:
            self.context.note(f"without a label and over the threshold of {self.stage.threshold:g}: {modules['tally']}")


def mean_loss(model: nn.Module, batch: Batch, task: Task) -> Tensor:
    """The mean label loss over what has a label, a scalar with a graph."""
    values, kept = task.losses(batch.call(model), batch), task.labelled(batch)
    return values.mean() if kept is None else torch.where(kept, values, 0.0).sum() / kept.sum().clamp_min(1)
