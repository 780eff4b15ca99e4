"""The control: does the teacher help? The same student is trained on labels alone, and both are compared.

A pair shares all but the teacher: the student's first weights, the order of the data, the number of optimizer steps, the
optimizer and its settings. A student with fresh weights is drawn anew for each further seed; one that was given, or made of
the teacher's layers, begins with the same weights each time, and only dropout and the order of the data differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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


def compared(stage: DistillStage, model: nn.Module, context: Context) -> nn.Module:
    """Train pairs of distilled and control; note what was found, and return the distilled student of the first seed.

    Raises:
        KdError: there is nothing to compare on, or a training failed.
    """
    data = scored_data(context)
    if data is None:
        raise KdError("--control is compared on the session's eval data, with labels, and there is none", "%kd set --eval {held_out_loader}")
    plain = stage.model_copy(update={"control": None, "seeds": 1})
    before, control, distilled = [], [], []
    kept: nn.Module | None = None
    for seed in range(stage.seeds):
        pair = _Pair(stage, plain, model, context, seed)
        before.append(figure([pair.start], data, context))
        student = pair.distil()
        distilled.append(Run(figure([student], data, context), tuple(pair.epochs)))
        kept = student if kept is None else kept
        del student
        control.append(Run(figure([pair.train_control()], data, context), tuple(pair.epochs)))
    teacher = _teacher(plain, model, context, data)
    remarks = [*_remarks(stage), *([_step_sizes(plain, model, context)] if stage.optimizer == "sgd" and stage.fits == 1 else [])]
    found = Comparison(context.task.metric, context.task.better, before, control, distilled, teacher, remarks)
    context.exhibit(found)
    context.note(found.lines()[0])
    assert kept is not None
    return kept


class _Pair:
    """A distilled student and its control, from the same weights."""

    def __init__(self, stage: DistillStage, plain: DistillStage, model: nn.Module, context: Context, seed: int):
        self.stage, self.plain, self.model, self.context, self.number = stage, plain, model, context, seed
        self.seed = context.seed + seed
        self.steps = self.fit = 0
        self.span = 1
        self.epochs: list[float] = []
        self.start = private_copy(plain.beginning(private_copy(model), replace(context, seed=self.seed, notes=[], exhibits=[])))

    def distil(self) -> nn.Module:
        context = self._round(1, self.stage.fits, "distilled")
        try:
            return self.plain.teach(private_copy(self.model), context)
        finally:
            if not self.number:
                self.context.notes.extend(context.notes)
                self.context.exhibits.extend(context.exhibits)

    def train_control(self) -> nn.Module:
        """As many optimizer steps as the distilled student had in its last training."""
        context = self._round(1 + self.stage.fits, 1, "control")
        options = {name: getattr(self.plain, name) for name in TrainStage.model_fields} | {"data": self.stage.control}
        if self.stage.control != self.stage.data:
            options["steps"] = self.steps
        made = context.fit(self.start, [Labels(**options)])
        if not self.number:
            self.context.notes.extend(f"control: {note}" for note in context.notes)
        return made

    def _round(self, first: int, span: int, name: str) -> Context:
        count, each = self.stage.seeds, self.stage.fits + 1
        self.epochs, self.fit, self.span = [], 0, span
        told = f"seed {self.number + 1} of {count}, {name}" if count > 1 else name
        return Round(each * self.number + first, each * count, told, span).of(self.context, self._hear, seed=self.seed)

    def _hear(self, progress: Progress) -> None:
        """Take down what the last of its trainings tells."""
        self.steps = round(progress.total / self.span)
        fit = math.ceil(progress.done / progress.total * self.span)
        if fit != self.fit:
            self.fit, self.epochs = fit, []
        epoch = progress.figures.get(f"validation_{self.context.task.metric}")
        if epoch is not None:
            self.epochs.append(epoch)


def _teacher(stage: DistillStage, model: nn.Module, context: Context, data: Any) -> float | None:
    """The teacher's figure; None where only its signals on the training data are at hand."""
    source = stage.source(context if stage.student is None else replace(context, original=model))
    try:
        held = source.model
        return None if held is None else figure([held], data, context)
    finally:
        source.close()


def _remarks(stage: DistillStage) -> list[str]:
    remarks = [] if stage.validation else ["figures are of the last epoch; --validation {held_out} tells the best one"]
    if stage.patience is not None:
        remarks.append("--patience may have stopped one of a pair before the other")
    if stage.control != stage.data and stage.needed().labels:
        remarks.append(f"not only the teacher differs: the distilled student has the labels of {stage.data} too, the control those of {stage.control} alone")
    return remarks


def _step_sizes(stage: DistillStage, model: nn.Module, context: Context) -> str:
    """With SGD a larger loss is a larger step, so the gradients of both are told, and what to make of them."""
    apart = replace(context, notes=[], exhibits=[], observe=lambda progress: None)
    once: dict[str, Any] = {"steps": 1, "learning_rate": 1.0, "schedule": "constant", "warmup": 0.0, "clip": None, "weight_decay": 0.0}
    once |= {"validation": None, "patience": None, "keep": "last"}
    start = stage.beginning(private_copy(model), apart)
    taught = apart.fit(private_copy(model), [stage.model_copy(update=once)])
    labels = {name: getattr(stage, name) for name in TrainStage.model_fields} | once | {"data": stage.control or stage.data}
    plain = apart.fit(private_copy(start), [Labels(**labels)])
    ratio = _distance(taught, start) / max(_distance(plain, start), 1e-30)
    return (
        f"with sgd the size of the gradient is part of the step: at the first step the distilled one is {ratio:.2g} times the control's. "
        f"A gain may be the learning rate's; try the control with --learning-rate {stage.learning_rate * ratio:.2g}, or both with --optimizer adamw"
    )


@torch.no_grad()
def _distance(one: nn.Module, other: nn.Module) -> float:
    return math.sqrt(sum(float((a.double() - b.double()).square().sum()) for a, b in zip(one.parameters(), other.parameters(), strict=True)))
