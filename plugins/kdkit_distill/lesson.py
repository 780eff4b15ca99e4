"""The lesson: what all distillation shares - a teacher at hand, untouched; a student; labels beside it or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdkit.contract import Needs, TrainStage, param
from kdkit.errors import KdError
from kdkit.models import adopt, private_copy
from kdkit.tasks import CausalLM, Classification
from kdkit.training import Step, Term, TrainPart

if TYPE_CHECKING:
    from kdkit.context import Context

PADDING = 1024
"""Heads of one vocabulary may differ by so many rows that padding put there; more is another vocabulary."""


@dataclass(frozen=True)
class Signal:
    """What a model says of a batch.

    Attributes:
        logits: (batch, classes) or (batch, tokens, classes).
        output: whatever the model returned.
    """

    logits: Tensor
    output: Any


class DistillStage(TrainStage):
    """A stage whose student learns from a teacher: loss = (1 - alpha) · label loss + alpha · the technique's terms."""

    teacher: str = param("teacher", "the session's model to learn from; where none was given, the model the session began with", refers="model")
    student: str | None = param(None, "a model of the session to train in place of the current one, which then teaches it", refers="model")
    alpha: float = param(0.9, "share of the teacher in the loss; the rest is the labels'", ge=0, le=1, search=(0.5, 1.0))
    labels: bool = param(True, "learn from labels too; --no-labels leaves all to the teacher and wants none")

    # a student of its own may return its outputs in another form; the lesson itself compares what both say
    keeps_output = False

    @property
    def share(self) -> float:
        """Of the teacher in the loss."""
        return self.alpha if self.labels else 1.0

    def needed(self) -> Needs:
        return Needs(train=True, teacher=True, labels=self.share < 1)

    def learner(self, model: nn.Module, context: Context) -> nn.Module:
        if self.student is None:
            return model
        return private_copy(adopt(context.named(self.student, "a model")))

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return Lesson(self, context)

    def terms(self, student: Signal, teacher: Signal) -> Iterable[Term]:
        """The technique's terms, with weights among themselves."""
        raise NotImplementedError


class Lesson(TrainPart):
    """Asks the teacher about each batch, and hands both answers to the technique."""

    def __init__(self, stage: DistillStage, context: Context):
        self.stage, self.context = stage, context
        self.teacher: nn.Module | None = None
        self.held = contextlib.ExitStack()
        self.told = False

    def open(self, model: nn.Module) -> None:
        if not isinstance(self.context.task, Classification):
            raise KdError(
                f"{self.stage.title} compares classes, and the task is {self.context.task.name}",
                "it works for classification and language models; --task says what yours is",
            )
        teacher = self.held.enter_context(self.context.teacher(self.stage.teacher))
        here, there = ({tensor.device for tensor in (*each.parameters(), *each.buffers())} for each in (model, teacher))
        # a copy, since moving the user's own model would change it
        self.teacher = private_copy(teacher).to(next(iter(here))) if there - here else teacher

    def terms(self, step: Step) -> Iterator[Term]:
        if self.stage.share < 1:
            yield Term.of_labels(step, 1 - self.stage.share)
        if self.stage.share > 0:
            for term in self.stage.terms(*self._signals(step)):
                yield replace(term, weight=_scaled(term, self.stage.share))

    def _signals(self, step: Step) -> tuple[Signal, Signal]:
        assert self.teacher is not None
        with torch.no_grad():
            answer = step.batch.call(self.teacher)
        student, teacher = step.task.prediction(step.output, step.batch), step.task.prediction(answer, step.batch)
        teacher = teacher.to(student.device)
        if student.shape != teacher.shape:
            student, teacher = self._fitted(student, teacher)
        return Signal(student, step.output), Signal(teacher, answer)

    def _fitted(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Cut the padding off the wider of two heads over one vocabulary."""
        classes = (student.shape[-1], teacher.shape[-1])
        if student.shape[:-1] != teacher.shape[:-1]:
            raise KdError(
                f"the teacher's answers have shape {tuple(teacher.shape)}, the student's {tuple(student.shape)}",
                "both must say as much about each item; look at pooling, strides and tokenizers",
            )
        if not isinstance(self.context.task, CausalLM) or abs(classes[0] - classes[1]) > PADDING:
            raise KdError(
                f"the teacher knows {classes[1]} classes, the student {classes[0]}",
                "soft labels compare the same classes in the same order; give the student a head of that width",
            )
        if not self.told:
            self.told = True
            self.context.note(f"vocabulary cut to {min(classes)}: the student's head has {classes[0]} rows, the teacher's {classes[1]}; the rest was taken for padding")
        return student[..., : min(classes)], teacher[..., : min(classes)]

    def close(self, model: nn.Module) -> None:
        self.teacher = None
        self.held.close()


def _scaled(term: Term, factor: float) -> float | Callable[[float], float]:
    weight = term.weight
    return (lambda progress: factor * weight(progress)) if callable(weight) else factor * weight
