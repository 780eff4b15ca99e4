"""The control: does the teacher help? The same student is trained on labels alone, and both are compared.

In a `together` group the control is the same loop without its techniques of distillation.

A pair shares all but the teacher: the student's first weights, the order of the data, the number of optimizer steps, the
optimizer and its settings. A student with fresh weights is drawn anew for each further seed; one that was given, or made of
the teacher's layers, begins with the same weights each time, and only dropout and the order of the data differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from kdkit.contract import Needs, TrainStage
from kdkit.errors import KdError
from kdkit.models import private_copy
from kdkit.training import Step, Term, TrainPart
from kdkit_distill.comparison import Comparison, Run
from kdkit_distill.evaluation import figure, scored_data
from kdkit_distill.rounds import Round

if TYPE_CHECKING:
    from kdkit.context import Context, Progress
    from kdkit_distill.stage import DistillStage


class Labels(TrainStage):
    """Train on labels alone."""

    id: ClassVar[str] = "distill.control"
    needs: ClassVar[Needs] = Needs(train=True, labels=True)

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return LabelPart()


class LabelPart(TrainPart):
    """The task's own loss."""

    def terms(self, step: Step) -> Iterator[Term]:
        yield Term.of_labels(step)


def comparison_conflicts(stage: DistillStage) -> Iterator[str]:
    """Options of a comparison that don't go together, a line each."""
    from kdkit_distill.stage import DistillStage

    if stage.seeds > 1 and stage.control is None:
        yield "--seeds repeats a comparison, and there is none: --control train"
    if stage.control is not None and type(stage).apply is not DistillStage.apply:
        yield f"{stage.title} trains in a way of its own, and has no control; leave out --control, and compare it with tune finetune"
    if (stage.checkpoint or stage.resume) and (stage.control is not None or stage.fits > 1):
        yield "--checkpoint and --resume are for one training, and this stage runs several; leave them out"


def comparison_lacks(stage: DistillStage, context: Context) -> Iterator[str]:
    """Labels that a comparison can't do without, a line each."""
    if stage.control is None:
        return
    data = context.objects.get(stage.control)
    if data is not None and not data.labelled and context.task.needs_labels:
        yield f"--control {stage.control}: the control learns from labels, and {stage.control} has none"
    if scored_data(context) is None:
        yield "--control is compared on the session's eval data, with labels: %kd set --eval {held_out_loader}"


def compared(stage: DistillStage, model: nn.Module, context: Context, beside: Sequence[TrainStage] = ()) -> nn.Module:
    """Train pairs of distilled and control; note what was found, and return the distilled student of the first seed.

    Args:
        stage: asks for the control, and its loop options count.
        model: the model at hand.
        context: of the run.
        beside: the other stages of its `together` group.

    Raises:
        KdError: there is nothing to compare on, or a training failed.
    """
    data = scored_data(context)
    if data is None:
        raise KdError("--control is compared on the session's eval data, with labels, and there is none", "%kd set --eval {held_out_loader}")
    group = _Group(stage.model_copy(update={"control": None, "seeds": 1}), beside)
    before, control, distilled = [], [], []
    kept: nn.Module | None = None
    for seed in range(stage.seeds):
        pair = _Pair(stage, group, model, context, seed)
        before.append(figure([pair.start], data, context))
        student = pair.distil()
        distilled.append(Run(figure([student], data, context), tuple(pair.epochs)))
        kept = student if kept is None else kept
        del student
        control.append(Run(figure([pair.train_control()], data, context), tuple(pair.epochs)))
    teacher = _teacher(group, model, context, data)
    remarks = [*_remarks(stage, group), *([_step_sizes(stage, group, model, context)] if stage.optimizer == "sgd" and stage.fits == 1 else [])]
    found = Comparison(context.task.metric, context.task.better, before, control, distilled, teacher, remarks)
    context.exhibit(found)
    context.note(found.lines()[0])
    assert kept is not None
    return kept


class _Group:
    """The stages of one loop, as they teach, and what is left of them without a teacher.

    Args:
        first: without its control.
        beside: the others; empty where it runs by itself.
    """

    def __init__(self, first: DistillStage, beside: Sequence[TrainStage] = ()):
        from kdkit_distill.stage import DistillStage

        self.first, self.beside = first, list(beside)
        self.untaught = [each for each in beside if not isinstance(each, DistillStage)]
        self.bringing = next((each for each in (first, *beside) if isinstance(each, DistillStage) and each.student is not None), first)

    def beginning(self, model: nn.Module, context: Context) -> nn.Module:
        """The student as its training begins."""
        return self.bringing.beginning(model, context)

    def teach(self, model: nn.Module, context: Context, **options: Any) -> nn.Module:
        """Train the student; `options` take the place of the first stage's."""
        first = self.first.model_copy(update=options)
        return context.fit(model, [first, *self.beside]) if self.beside else first.teach(model, context)

    def train_without(self, start: nn.Module, context: Context, **options: Any) -> nn.Module:
        """Train the student as it begins on labels, and for what else the loop trains for."""
        loop = {name: getattr(self.first, name) for name in TrainStage.model_fields}
        return context.fit(start, [Labels(**loop | options), *self.untaught])


class _Pair:
    """A distilled student and its control, from the same weights."""

    def __init__(self, stage: DistillStage, group: _Group, model: nn.Module, context: Context, seed: int):
        self.stage, self.group, self.model, self.context, self.number = stage, group, model, context, seed
        self.seed = context.seed + seed
        self.steps = self.fit = 0
        self.span = 1
        self.epochs: list[float] = []
        self.start = private_copy(group.beginning(private_copy(model), replace(context, seed=self.seed, notes=[], exhibits=[])))

    def distil(self) -> nn.Module:
        context = self._round(1, self.stage.fits, "distilled")
        try:
            return self.group.teach(private_copy(self.model), context)
        finally:
            if not self.number:
                self.context.notes.extend(context.notes)
                self.context.exhibits.extend(context.exhibits)

    def train_control(self) -> nn.Module:
        """As many optimizer steps as the distilled student had in its last training."""
        context = self._round(1 + self.stage.fits, 1, "control")
        steps = {} if self.stage.control == self.stage.data else {"steps": self.steps}
        made = self.group.train_without(self.start, context, data=self.stage.control, **steps)
        if not self.number:
            self.context.notes.extend(f"control: {note}" for note in context.notes)
        return made

    def _round(self, first: int, span: int, name: str) -> Context:
        count, each = self.stage.seeds, self.stage.fits + 1
        self.epochs, self.fit, self.span = [], 0, span
        told = f"seed {self.number + 1} of {count}, {name}" if count > 1 else name
        mark = ", ".join([f"seed {self.number + 1}"] * (self.number > 0) + [name] * (name == "control"))
        return Round(each * self.number + first, each * count, told, span, mark).of(self.context, self._hear, seed=self.seed)

    def _hear(self, progress: Progress) -> None:
        """Take down what the last of its trainings tells."""
        self.steps = round(progress.total / self.span)
        fit = math.ceil(progress.done / progress.total * self.span)
        if fit != self.fit:
            self.fit, self.epochs = fit, []
        epoch = progress.figures.get(f"validation_{self.context.task.metric}")
        if epoch is not None:
            self.epochs.append(epoch)


def _teacher(group: _Group, model: nn.Module, context: Context, data: Any) -> float | None:
    """The teacher's figure; None where only its signals on the training data are at hand."""
    source = group.first.source(context if group.bringing.student is None else replace(context, original=model))
    try:
        held = source.model
        return None if held is None else figure([held], data, context)
    finally:
        source.close()


def _remarks(stage: DistillStage, group: _Group) -> list[str]:
    remarks = [] if stage.validation else ["figures are of the last epoch; --validation {held_out} tells the best one"]
    if stage.patience is not None:
        remarks.append("--patience may have stopped one of a pair before the other")
    if stage.control != stage.data and stage.needed().labels:
        remarks.append(f"not only the teacher differs: the distilled student has the labels of {stage.data} too, the control those of {stage.control} alone")
    if group.beside:
        remarks.append(f"the control is the same loop without its teachers: {' and '.join(['labels', *(each.title for each in group.untaught)])}")
    return remarks


def _step_sizes(stage: DistillStage, group: _Group, model: nn.Module, context: Context) -> str:
    """With SGD a larger loss is a larger step, so the gradients of both are told, and what to make of them."""
    apart = replace(context, notes=[], exhibits=[], observe=lambda progress: None)
    once: dict[str, Any] = {"steps": 1, "learning_rate": 1.0, "schedule": "constant", "warmup": 0.0, "clip": None, "weight_decay": 0.0}
    once |= {"validation": None, "patience": None, "keep": "last"}
    start = group.beginning(private_copy(model), apart)
    taught = group.teach(private_copy(model), apart, **once)
    plain = group.train_without(private_copy(start), apart, **once, data=stage.control)
    ratio = _distance(taught, start) / max(_distance(plain, start), 1e-30)
    return (
        f"with sgd the size of the gradient is part of the step: at the first step the distilled one is {ratio:.2g} times the control's. "
        f"A gain may be the learning rate's; try the control with --learning-rate {stage.learning_rate * ratio:.2g}, or both with --optimizer adamw"
    )


@torch.no_grad()
def _distance(one: nn.Module, other: nn.Module) -> float:
    return math.sqrt(sum(float((a.double() - b.double()).square().sum()) for a, b in zip(one.parameters(), other.parameters(), strict=True)))
