"""Self-distillation: the student learns from an average or an earlier state of itself, or from a virtual teacher.

ema: Tarvainen, Valpola, "Mean teachers are better role models", 2017 (arXiv:1703.01780).
snapshot: Yang et al., "Snapshot Distillation: Teacher-Student Optimization in One Generation", 2019 (arXiv:1812.00123); Kim et
al., "Self-Knowledge Distillation with Progressive Refinement of Targets", 2021 (arXiv:2006.12000).
virtual: Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", 2020 (arXiv:1909.11723): Tf-KD.

Pitfalls:

- Self-distillation needs labels, since it adds no knowledge. With ema, items with label -100 count only for the teacher.
- The statistics of batch norms are averaged like the weights: those of the last batches do not fit averaged weights.
- The first average is over few steps: the momentum grows as 1 - 1 / (step + 1) until it reaches --momentum.
- The virtual teacher's paper softens its probabilities by T, as here; its code takes a softmax of the probabilities over T,
  which is nearly uniform, and leaves the student at T = 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdkit import Batch, KdError, Step, Task, Term, TrainPart, param
from kdkit.guards import without_gradients
from kdkit.models import device_of, evaluating, private_copy
from kdkit_distill.distill_part import DistillPart
from kdkit_distill.layers.matching import Capture
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.scheme.stage import NoTeacher
from kdkit_distill.signals import Signal, SignalPair
from kdkit_distill.teachers.sources import Source

if TYPE_CHECKING:
    from kdkit import Context


def virtual_teacher(labels: Tensor, classes: int, correctness: float = 0.99) -> Tensor:
    """The logits of a teacher with probability `correctness` for the right class, and equal ones for all others: (...) int64 -> (..., classes).

    Without a label (-100) all classes have the same probability.

    >>> virtual_teacher(torch.tensor([1]), 3, 0.9).exp()
    tensor([[0.0500, 0.9000, 0.0500]])
    """
    shares = torch.full((*labels.shape, classes), (1 - correctness) / (classes - 1), device=labels.device)
    known = (labels >= 0)[..., None]
    right = torch.zeros_like(shares, dtype=torch.bool).scatter_(-1, labels.clamp_min(0)[..., None], True)
    return torch.where(known, torch.where(right, correctness, shares), 1.0 / classes).log()


class SelfTaught(NoTeacher):
    """Learn from an average or a snapshot of the student itself, or from a virtual teacher.

    loss = (1 - alpha) · label loss + alpha · T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)).

    ema: the teacher's weights and batch norm statistics are momentum · theirs + (1 - momentum) · the student's after each step.
    snapshot: the teacher is a copy of the student from the end of the last epoch, or of the last --period epochs; before the
    first one, only labels count.
    virtual: no net at all; z_t is the log of --correctness for the label's class, and the rest divided evenly (Tf-KD).
    """

    id: ClassVar[str] = "distill.self"
    known_as: ClassVar[tuple[str, ...]] = ("self-distillation", "mean teacher", "snapshot distillation", "Tf-KD", "PS-KD")

    teacher_form: Literal["ema", "snapshot", "virtual"] = param("ema", "the teacher: an average of the student's weights, its last snapshot, or smoothed labels")
    alpha: float = param(0.5, "share of the teacher in the loss; the rest is the labels'", gt=0, lt=1, search=(0.1, 0.9), main=True)
    momentum: float = param(0.999, "ema: share of the old average that a step keeps", ge=0, lt=1, search=(0.9, 0.9999))
    period: int = param(1, "snapshot: epochs from one to the next", ge=1)
    correctness: float = param(0.99, "virtual: probability of the right class", gt=0, lt=1)

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if not self.labels:
            yield "a student that is its own teacher needs labels; leave out --no-labels"
        if "teacher" in self.changed():
            yield f"--teacher {self.teacher} is not used: the student is its own teacher; distill soft learns from another"

    def train(self, model: nn.Module, context: Context) -> nn.Module:
        # in a group the epochs are another's
        if self.teacher_form == "snapshot" and self.steps is None and self.epochs <= self.period:
            raise KdError(
                f"the first snapshot is taken after epoch {self.period}, and --epochs is {self.epochs:g}, so only labels would count",
                f"--epochs {3 * self.period}",
                "or --teacher-form ema, which teaches from the first step",
            )
        return super().train(model, context)

    def source(self, context: Context) -> Source:
        return Virtual(context.task, self.correctness) if self.teacher_form == "virtual" else Itself(context.task)

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return SelfTaughtPart(self, context)

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        values = soft_labels(seen.student.logits, seen.teacher.dense, self.temperature_at(seen.step.progress))
        # a virtual teacher has only the labels
        yield Term(self.teacher_form, values, labels=self.teacher_form == "virtual")


class Shadow(nn.Module):
    """A copy of a model that is updated from it. Its tensors are buffers: saved in checkpoints, ignored by the optimizer.

    >>> net = nn.Linear(1, 1)
    >>> shadow = Shadow(net)
    >>> len(list(shadow.parameters())), len(list(shadow.buffers()))
    (0, 3)
    """

    ready: Tensor

    def __init__(self, model: nn.Module):
        super().__init__()
        copied = private_copy(model).eval().requires_grad_(False)
        # in a list, so that its parameters are not registered: the registered buffers share their memory
        self._copied = [copied]
        for number, tensor in enumerate(_tensors(copied)):
            self.register_buffer(f"tensor{number}", tensor.data)
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    @property
    def model(self) -> nn.Module:
        """The copy, in eval mode and without gradients."""
        return self._copied[0]

    @without_gradients
    def follow(self, model: nn.Module, momentum: float) -> None:
        """Update each weight, and each buffer of floating numbers, to momentum · its value + (1 - momentum) · the model's; copy other buffers."""
        for mine, theirs in zip(_tensors(self.model), _tensors(model), strict=True):
            if momentum and theirs.is_floating_point():
                mine.lerp_(theirs, 1 - momentum)
            else:
                mine.copy_(theirs)
        self.ready.fill_(True)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


class Itself(Source):
    """The student's shadow as a teacher."""

    def __init__(self, task: Task):
        self.task = task
        self.shadow: Shadow | None = None
        self.capture = Capture()

    def of(self, model: nn.Module) -> Shadow:
        """Make the shadow, a copy of the model."""
        self.shadow = Shadow(model)
        return self.shadow

    @property
    def model(self) -> nn.Module | None:
        return self.shadow.model if self.shadow else None

    def open(self, device: torch.device, layers: Sequence[str] = ()) -> None:
        self.capture = Capture(self.model, layers).__enter__()

    @without_gradients
    def signal(self, batch: Batch) -> Signal:
        assert self.shadow is not None
        output = batch.call(self.shadow.model)
        return Signal(self.task.prediction(output, batch), self.capture.take(), output)

    def close(self) -> None:
        self.capture.__exit__()


class Virtual(Source):
    """A teacher made of softened labels."""

    def __init__(self, task: Task, correctness: float):
        self.task, self.correctness, self.shape = task, correctness, torch.Size()

    def of(self, model: nn.Module, example: Batch) -> None:
        """Get the number of classes from the student."""
        with evaluating(model):
            self.shape = self.task.prediction(example.call(model), example).shape

    def signal(self, batch: Batch) -> Signal:
        if batch.labels is None:
            shape = (batch.size, *self.shape[1:])
            return Signal(torch.zeros(shape, device=batch.device))
        labels, places = self.task.labels(batch), torch.Size((batch.size, *self.shape[1:-1]))
        if labels.numel() != places.numel() or not torch.equal(labels.long().to(labels.dtype), labels):
            raise KdError(
                f"a virtual teacher needs class numbers, but the labels are {labels.dtype} {tuple(labels.shape)}", "--teacher-form ema accepts labels of any form"
            )
        return Signal(virtual_teacher(labels.long().view(places), self.shape[-1], self.correctness))


class SelfTaughtPart(DistillPart):
    """A part whose teacher is a shadow of the student."""

    stage: SelfTaught
    ready = False

    def open(self, model: nn.Module) -> None:
        device = device_of(model)
        if isinstance(self.source, Virtual):
            self.source.of(model, self.context.example.to(device))
        elif isinstance(self.source, Itself):
            self.modules["shadow"] = self.source.of(model)
        self.student = model
        super().open(model)

    @property
    def shadow(self) -> Shadow | None:
        """The student's shadow; None if the teacher is virtual."""
        return self.source.shadow if isinstance(self.source, Itself) else None

    def terms(self, step: Step) -> Iterator[Term]:
        # read from the device until it is true; a resumed training has a snapshot from the start
        self.ready = self.ready or self.stage.teacher_form != "snapshot" or bool(self.shadow and self.shadow.ready)
        if self.ready:
            yield from super().terms(step)
        else:
            self.capture.take()
            yield Term.from_labels(step)

    def after_step(self, step: Step) -> None:
        super().after_step(step)
        if self.shadow and self.stage.teacher_form == "ema":
            self.shadow.follow(step.model, min(self.stage.momentum, 1 - 1 / (step.index + 1)))

    def after_epoch(self, epoch: int) -> None:
        super().after_epoch(epoch)
        if self.shadow and self.stage.teacher_form == "snapshot" and epoch % self.stage.period == 0:
            self.shadow.follow(self.student, 0.0)

    def close(self, model: nn.Module) -> None:
        super().close(model)
        if self.stage.teacher_form == "snapshot" and not self.ready:
            self.context.note(f"only labels were used: no step came after the first {self.stage.period} epochs; use more --epochs, or a smaller --period")
