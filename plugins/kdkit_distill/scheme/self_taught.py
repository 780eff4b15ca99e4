"""Self-distillation: the student learns from itself, as it was before, or from a teacher that nobody trained.

ema: Tarvainen, Valpola, "Mean teachers are better role models", 2017 (arXiv:1703.01780).
snapshot: Yang et al., "Snapshot Distillation: Teacher-Student Optimization in One Generation", 2019 (arXiv:1812.00123); Kim et
al., "Self-Knowledge Distillation with Progressive Refinement of Targets", 2021 (arXiv:2006.12000).
virtual: Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", 2020 (arXiv:1909.11723): Tf-KD.

Pitfalls:

- A student can't teach itself what it does not know: labels are needed. With ema, items of label -100 count for the teacher alone.
- The average's batch norm statistics are the student's own, copied; its weights are averaged.
- Early on the average is of few steps: the momentum grows as 1 - 1 / (step + 1) until it reaches --momentum.
- The virtual teacher's paper softens its probabilities by T, as here; its code takes a softmax of the probabilities over T,
  which is nearly uniform, and leaves the student at T = 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdkit.contract import param
from kdkit.counting import device_of
from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models import evaluating, private_copy
from kdkit.tasks import Task
from kdkit.training import Step, Term, TrainPart
from kdkit_distill.lesson import Lesson
from kdkit_distill.matching import Capture
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.scheme.stage import NoTeacher
from kdkit_distill.signals import Exchange, Signal
from kdkit_distill.sources import Source

if TYPE_CHECKING:
    from kdkit.context import Context


def virtual_teacher(labels: Tensor, classes: int, correctness: float = 0.99) -> Tensor:
    """The logits of a teacher that gives the right class `correctness`, and all others the same: (...) int64 -> (..., classes).

    Where there is no label (-100) it knows nothing, and gives all classes the same.

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

    ema: the teacher's weights are momentum · theirs + (1 - momentum) · the student's after each step.
    snapshot: the teacher is the student as it was at the end of the last epoch, or of --period epochs; until there is one the
    labels teach alone.
    virtual: no net at all; z_t is the log of --correctness for the label's class, and the rest shared evenly (Tf-KD).
    """

    id: ClassVar[str] = "distill.self"

    teacher_form: Literal["ema", "snapshot", "virtual"] = param("ema", "who teaches: the average of the student's weights, its last snapshot, or a made-up distribution")
    alpha: float = param(0.5, "share of the teacher in the loss; the rest is the labels'", gt=0, lt=1, search=(0.1, 0.9))
    momentum: float = param(0.999, "ema: what a step leaves of the average", ge=0, lt=1, search=(0.9, 0.9999))
    period: int = param(1, "snapshot: epochs from one to the next", ge=1)
    correctness: float = param(0.99, "virtual: probability of the right class", gt=0, lt=1)

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if not self.labels:
            yield "a student that is its own teacher learns from labels; leave out --no-labels"
        if "teacher" in self.changed():
            yield f"--teacher {self.teacher} has no part in it: the student is its own teacher; distill soft learns from another"

    def teach(self, model: nn.Module, context: Context) -> nn.Module:
        # in a group the epochs are another's
        if self.teacher_form == "snapshot" and self.steps is None and self.epochs <= self.period:
            raise KdError(
                f"the first snapshot is taken after epoch {self.period}, and --epochs is {self.epochs:g}, so that labels would teach alone",
                f"--epochs {3 * self.period}",
                "or --teacher-form ema, which teaches from the first step",
            )
        return super().teach(model, context)

    def source(self, context: Context) -> Source:
        return Virtual(context.task, self.correctness) if self.teacher_form == "virtual" else Itself(context.task)

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return OwnLesson(self, context)

    def terms(self, seen: Exchange) -> Iterable[Term]:
        values = soft_labels(seen.student.logits, seen.teacher.dense, self.temperature_at(seen.step.progress))
        # a virtual teacher knows the labels only
        yield Term(self.teacher_form, values, labels=self.teacher_form == "virtual")


class Shadow(nn.Module):
    """A copy of a model that follows it. Its tensors are buffers: kept in checkpoints, touched by no optimizer.

    >>> net = nn.Linear(1, 1)
    >>> shadow = Shadow(net)
    >>> len(list(shadow.parameters())), len(list(shadow.buffers()))
    (0, 3)
    """

    ready: Tensor

    def __init__(self, model: nn.Module):
        super().__init__()
        copied = private_copy(model).eval().requires_grad_(False)
        # in a list, so that its parameters are not the shadow's: what is registered shares their memory
        self._copied = [copied]
        for number, tensor in enumerate(_tensors(copied)):
            self.register_buffer(f"tensor{number}", tensor.data)
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    @property
    def model(self) -> nn.Module:
        """The copy, in eval mode and without gradients."""
        return self._copied[0]

    @torch.no_grad()
    def follow(self, model: nn.Module, momentum: float) -> None:
        """Leave `momentum` of each weight, and take the rest from the model's; buffers become the model's."""
        for mine, theirs in zip(_tensors(self.model), _tensors(model), strict=True):
            if momentum and isinstance(theirs, nn.Parameter) and theirs.is_floating_point():
                mine.lerp_(theirs, 1 - momentum)
            else:
                mine.copy_(theirs)
        self.ready.fill_(True)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


class Itself(Source):
    """The student's own shadow as a teacher."""

    def __init__(self, task: Task):
        self.task = task
        self.shadow: Shadow | None = None
        self.capture = Capture()

    def of(self, model: nn.Module) -> Shadow:
        """Begin as a copy of the model."""
        self.shadow = Shadow(model)
        return self.shadow

    @property
    def model(self) -> nn.Module | None:
        return self.shadow.model if self.shadow else None

    def open(self, device: torch.device, layers: Sequence[str] = ()) -> None:
        self.capture = Capture(self.model, layers).__enter__()

    @torch.no_grad()
    def signal(self, batch: Batch) -> Signal:
        assert self.shadow is not None
        output = batch.call(self.shadow.model)
        return Signal(self.task.prediction(output, batch), self.capture.take(), output)

    def close(self) -> None:
        self.capture.__exit__()


class Virtual(Source):
    """A teacher that says what the labels say, a little softer."""

    def __init__(self, task: Task, correctness: float):
        self.task, self.correctness, self.shape = task, correctness, torch.Size()

    def of(self, model: nn.Module, example: Batch) -> None:
        """Learn from the student how many classes there are."""
        with evaluating(model):
            self.shape = self.task.prediction(example.call(model), example).shape

    def signal(self, batch: Batch) -> Signal:
        if batch.labels is None:
            shape = (batch.size, *self.shape[1:])
            return Signal(torch.zeros(shape, device=batch.device))
        labels, places = self.task.labels(batch), torch.Size((batch.size, *self.shape[1:-1]))
        if labels.numel() != places.numel() or not torch.equal(labels.long().to(labels.dtype), labels):
            raise KdError(
                f"a virtual teacher wants class numbers, and the labels are {labels.dtype} {tuple(labels.shape)}", "--teacher-form ema takes labels of any form"
            )
        return Signal(virtual_teacher(labels.long().view(places), self.shape[-1], self.correctness))


class OwnLesson(Lesson):
    """A lesson whose teacher is made of the student, and follows it."""

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
        """The student's past; none where the teacher is virtual."""
        return self.source.shadow if isinstance(self.source, Itself) else None

    def terms(self, step: Step) -> Iterator[Term]:
        # looked up on the device until it is so: a resumed training has one from the start
        self.ready = self.ready or self.stage.teacher_form != "snapshot" or bool(self.shadow and self.shadow.ready)
        if self.ready:
            yield from super().terms(step)
        else:
            self.capture.take()
            yield Term.of_labels(step)

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
            self.context.note(f"the labels taught alone: no step came after the first {self.stage.period} epochs; give more --epochs, or a smaller --period")
