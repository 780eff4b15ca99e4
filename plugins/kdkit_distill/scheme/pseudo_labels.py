"""Pseudo-labels: the teacher labels the unlabelled items where it is confident enough; the other items use their own labels.

Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks", 2013 (ICML workshop).
The threshold, and the mean over all unlabelled items, confident or not: Sohn et al., "FixMatch", 2020 (arXiv:2001.07685). Labels
from a teacher: Xie et al., "Self-training with Noisy Student", 2020 (arXiv:1911.04252).

Pitfalls:

- A threshold is meaningless for a badly calibrated teacher: check the share of items above it, which the notes show.
- Classes in which the teacher is never confident get no items; use a lower threshold, or --form soft.
- Hard labels discard the teacher's probabilities of the other classes; soft ones keep them.
- With --labelled, batch norm sees two batches in a step, one of each set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdkit import Batch, Data, KdError, Needs, Step, Task, Term, TrainPart, param
from kdkit.data import own_randomness
from kdkit.tasks import IGNORED, CausalLM, at_least_float32, cross_entropy
from kdkit_distill.distill_part import DistillPart
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.response.stage import ResponseStage
from kdkit_distill.signals import SignalPair

if TYPE_CHECKING:
    from kdkit import Context


def confident(teacher: Tensor, threshold: float) -> Tensor:
    """Where the teacher gives its first choice a probability of at least `threshold`: logits (..., classes) -> bool (...).

    >>> confident(torch.tensor([[0.0, 9.0], [0.0, 0.1]]), 0.9)
    tensor([ True, False])
    """
    return sureness(teacher) >= threshold


def sureness(teacher: Tensor) -> Tensor:
    """The probability of the teacher's first choice: logits (..., classes) -> (...).

    >>> sureness(torch.zeros(1, 4))
    tensor([0.2500])
    """
    return at_least_float32(teacher).softmax(-1).amax(-1)


def pseudo_labels(student: Tensor, teacher: Tensor, threshold: float = 0.9, form: str = "hard", temperature: float = 1.0) -> Tensor:
    """The student's loss against the teacher's labels where the teacher is confident, 0 elsewhere.

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
    """Which items have no label: (batch,) bool; for token tasks (batch, tokens), without padding.

    An item of tokens has no label if all its labels are -100; single -100 mark tokens that do not count.

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
    """Learn from the teacher's labels where it is confident, and from the existing labels.

    loss = (1 - alpha) · label loss of the labelled items + alpha · mean over the unlabelled items of
    [max softmax(z_t) >= threshold] · (hard: cross entropy with the teacher's class; soft: T² · KL(teacher ‖ student)).

    An item is unlabelled if the training data has no labels, or its label is -100. --labelled names a labelled data set: each
    step also uses a batch of it. --no-labels treats every item as unlabelled.
    """

    id: ClassVar[str] = "distill.pseudo-labels"
    known_as: ClassVar[tuple[str, ...]] = ("pseudo-labeling", "pseudo-labelling", "FixMatch")
    sample_options: ClassVar[str] = "--data {unlabelled} --labelled {labelled}"
    tried_as: ClassVar[str] = "--no-labels --threshold 0"

    alpha: float = param(0.5, "share of the teacher's labels in the loss; the rest is the labels'", gt=0, le=1, search=(0.1, 0.9))
    threshold: float = param(0.9, "least probability of the teacher's first choice that makes it a label", ge=0, le=1, search=(0.5, 0.99), main=True)
    form: Literal["hard", "soft"] = param("hard", "learn the teacher's class, or its whole distribution")
    temperature: float = param(1.0, "softens both distributions of the soft form", gt=0, search=(1, 8))
    labelled: str | None = param(None, "data with labels; each step uses a batch of it together with the unlabelled one", names="data")

    def required_inputs(self) -> Needs:
        return replace(super().required_inputs(), labels=False)

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.labelled and self.share == 1:
            yield f"--labelled {self.labelled} has no share in the loss; leave out --no-labels, and set --alpha below 1"

    def incompatible_task(self, task: Task) -> str:
        if isinstance(task, CausalLM):
            return "the labels of a language model are its own inputs, so no item is unlabelled"
        return super().incompatible_task(task)

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return HalfLabelled(self, context)

    def without(self, step: Step) -> Tensor:
        """Which items, or tokens, of a batch the teacher may label."""
        return unlabelled(step.task, step.batch if self.labels else replace(step.batch, labels=None))

    def modules(self, features: list[tuple[Tensor, Tensor]], context: Context) -> nn.ModuleDict:
        return nn.ModuleDict({"tally": Tally()})

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        student, teacher = seen.student.logits, seen.teacher.dense
        without = self.without(seen.step)
        tally = seen.modules["tally"]
        assert isinstance(tally, Tally)
        tally.add(without, sureness(teacher), self.threshold)
        yield Term("pseudo", pseudo_labels(student, teacher, self.threshold, self.form, self.temperature_at(seen.step.progress)), mask=without)


class Tally(nn.Module):
    """Counts unlabelled items, and those above the threshold; checkpoints contain the counts."""

    without: Tensor
    passed: Tensor
    surest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("surest", torch.zeros(()))
        self.register_buffer("without", torch.zeros((), dtype=torch.int64))
        self.register_buffer("passed", torch.zeros((), dtype=torch.int64))

    def add(self, without: Tensor, sureness: Tensor, threshold: float) -> None:
        """Count the unlabelled items, or tokens, of a batch, and those above the threshold."""
        self.without += without.sum()
        self.passed += (without & (sureness >= threshold)).sum()
        self.surest = torch.maximum(self.surest, torch.where(without, sureness, 0.0).amax().to(self.surest.dtype))

    def __str__(self) -> str:
        seen, passed = int(self.without), int(self.passed)
        return f"{passed} of {seen} ({passed / seen:.0%})" if seen else "no item was unlabelled"


class Cycle:
    """A labelled data set, repeated: the step's number determines the batch.

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
        # augmentation must not draw from the training's generators: a resumed training loads other batches before this one
        return own_randomness(lambda: self.data.batches(shuffle=True, seed=seed, batch_size=self.batch_size), seed)

    def at(self, step: int) -> Batch:
        """The batch of a step; steps out of order need a pass over the batches before it."""
        if step != self.step or self.batch is None:
            number, place = divmod(step, self.length)
            if step != self.step + 1 or not place:
                self.batches = islice(self._pass(number), place, None)
            self.batch, self.step = next(self.batches), step
        return self.batch


class HalfLabelled(DistillPart):
    """A part in which labels and teacher cover different items."""

    stage: PseudoLabels
    cycle: Cycle | None = None

    def open(self, model: nn.Module) -> None:
        name = self.stage.labelled
        if name and not self.context.data(name).labelled:
            raise KdError(f"--labelled {name} has no labels", "pass pairs of inputs and labels")
        if not self._some_unlabelled():
            raise KdError(
                f"all items of {self.stage.data} have a label, so there is nothing for the teacher to label",
                "--no-labels: let the teacher label all items",
                "or set the label of the items it should label to -100, or pass these without labels as --data and the others as --labelled",
            )
        super().open(model)
        if name:
            self.cycle = Cycle(self.context.data(name), self.context.seed, self.stage.batch_size)

    def _some_unlabelled(self) -> bool:
        """Whether any item is unlabelled; stops at the first one, and in a stream at the end of the training."""
        data = self.context.data(self.stage.data)
        bound = self.stage.steps * self.stage.accumulate if self.stage.steps and data.items is None else None
        return not self.stage.labels or any(bool(unlabelled(self.context.task, batch).any()) for batch in islice(data.batches(), bound))

    def counts(self, batch: Batch) -> Mapping[str, int]:
        return {"pseudo": int(unlabelled(self.context.task, batch if self.stage.labels else replace(batch, labels=None)).sum())}

    def terms(self, step: Step) -> Iterator[Term]:
        # before another forward pass of the student, while the captured features are those of this one
        yield from self.taught(step)
        if self.stage.share == 1:
            return
        if step.batch.labels is not None:
            yield Term.from_labels(step, 1 - self.stage.share)
        if self.cycle is not None:
            # it comes from another batch than the step's, so it counts as one number for each step
            yield Term("labelled", mean_loss(step.model, self.cycle.at(step.index).to(step.batch.device), step.task), 1 - self.stage.share, penalty=True, label_loss=True)

    def after_epoch(self, epoch: int) -> None:
        super().after_epoch(epoch)
        tally = self.techniques[0].modules["tally"]
        assert isinstance(tally, Tally)
        if int(tally.without) and not int(tally.passed):
            raise KdError(
                f"the teacher is not confident enough for any of {int(tally.without)} unlabelled items: the highest probability is {float(tally.surest):.2g}, "
                f"and --threshold is {self.stage.threshold:g}",
                f"--threshold {0.9 * float(tally.surest):.1g} accepts the most confident of them",
                "or learn from all its predictions: distill soft --no-labels",
            )

    def close(self, model: nn.Module) -> None:
        super().close(model)
        modules = self.techniques[0].modules
        if "tally" in modules:
            self.context.note(f"unlabelled and above the threshold of {self.stage.threshold:g}: {modules['tally']}")


def mean_loss(model: nn.Module, batch: Batch, task: Task) -> Tensor:
    """The mean label loss over labelled items, a scalar with a graph."""
    values, kept = task.losses(batch.call(model), batch), task.labelled(batch)
    return values.mean() if kept is None else torch.where(kept, values, 0.0).sum() / kept.sum().clamp_min(1)
