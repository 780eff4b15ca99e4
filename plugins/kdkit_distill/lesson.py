"""The lesson: asks the teacher about each batch of a training, and hands both answers to the techniques."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdkit.counting import device_of
from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models import Served
from kdkit.training import Step, Term, TrainPart
from kdkit_distill.cache.source import Cached
from kdkit_distill.heads import same_classes
from kdkit_distill.matching import Capture, probed
from kdkit_distill.signals import Exchange, Pair, Signal

if TYPE_CHECKING:
    from kdkit.context import Context
    from kdkit_distill.stage import DistillStage


@dataclass
class Technique:
    """One technique within a lesson: its stage, and what it brought for this training."""

    stage: DistillStage
    pairs: tuple[Pair, ...] = ()
    modules: nn.ModuleDict = field(default_factory=nn.ModuleDict)


class Lesson(TrainPart):
    """Asks the teacher about each batch, and hands both answers to the techniques."""

    def __init__(self, stage: DistillStage, context: Context):
        self.stage, self.context = stage, context
        self.techniques = [Technique(each) for each in (stage, *stage.also_stages())]
        self.whole_batch = any(each.stage.relational for each in self.techniques)
        self.source = stage.source(context)
        if stage.cache:
            self.source = Cached(self.source, stage.cache, context.data(stage.data), context, stage.cache_as, self._top())
        self.capture = Capture()
        self.held = contextlib.ExitStack()
        self.told = False
        self.sick: Tensor | None = None
        self.owners: dict[str, DistillStage] = {}

    def _top(self) -> tuple[int, float] | None:
        """What a cache may keep of many classes: the most probable, where no technique compares all."""
        kept = {(getattr(each.stage, "top_k", None), getattr(each.stage, "temperature", 1.0)) for each in self.techniques if each.stage.compares_logits}
        count, temperature = kept.pop() if len(kept) == 1 else (None, 1.0)
        return (count, temperature) if count else None

    def open(self, model: nn.Module) -> None:
        if self.stage.control is not None:
            self.context.note(f"{self.stage.title}: nothing is compared; the control of a group is asked for in its first line, and that is to be one of distill")
        for each in self.techniques:
            if reason := each.stage.unsuited(self.context.task):
                raise KdError(f"{each.stage.title}: {reason}", f"the task is {self.context.task.name}; --task says what yours is")
        if not self.stage.share:
            return
        self.held.callback(self.source.close)
        for each in self.techniques:
            if each.stage.looks_inside() and isinstance(self.source.model, Served):
                raise KdError(
                    f"{each.stage.title} compares layers, and the teacher {self.stage.teacher} is a function, of which only the answers are seen",
                    "pass it as a model: %kd set --teacher {model}",
                    "or take a technique that compares answers: distill soft",
                )
            each.pairs = each.stage.pairs(model, self.source.model, self.context)
        named = [pair for each in self.techniques for pair in each.pairs]
        device = device_of(model)
        self.source.open(device, [pair.teacher for pair in named])
        self._probe(model, [pair.student for pair in named], device)
        self.capture = self.held.enter_context(Capture(model, [pair.student for pair in named]))

    def _probe(self, model: nn.Module, layers: list[str], device: torch.device) -> None:
        """Look at one batch before training: do both say the same kind of thing, and what shapes have their features?"""
        batch = self.context.data(self.stage.data).example().to(device)
        teacher = self.source.signal(batch)
        if teacher.sick():
            raise KdError("the teacher answers with nan or infinity", "evaluate it by itself first: %kd eval; is its input scaled as in its training?")
        student, output = probed(model, layers, batch)
        said = Signal(self.context.task.prediction(output, batch), student, output)
        if any(each.stage.compares_logits for each in self.techniques):
            said, teacher = self._fitted(said, teacher)
        for each in self.techniques:
            if reason := each.stage.unfit(said, teacher):
                raise KdError(f"{each.stage.title}: {reason}")
        for number, each in enumerate(self.techniques):
            each.modules = each.stage.beside(said, teacher, each.pairs, self.context)
            self.modules[str(number)] = each.modules

    def terms(self, step: Step) -> Iterator[Term]:
        alone = any(each.stage.alone(step.progress) for each in self.techniques)
        if self.stage.share < 1 and not alone:
            yield Term.of_labels(step, 1 - self.stage.share)
        if self.stage.share > 0:
            yield from self.taught(step)

    def taught(self, step: Step) -> Iterator[Term]:
        """The techniques' terms, in the teacher's share."""
        student, teacher = self.signals(step)
        for each in [each for each in self.techniques if each.stage.alone(step.progress)] or self.techniques:
            for term in each.stage.terms(Exchange(student, teacher, step, each.pairs, each.modules)):
                name = self._named(term.name, each.stage)
                yield replace(term, name=name, weight=_weighted(term, each.stage, self.stage.share))

    def _named(self, name: str, stage: DistillStage) -> str:
        """What a term is called: by its own name, with a number where an earlier technique has one of that name."""
        if self.owners.setdefault(name, stage) is not stage:
            name = _numbered(name, next(number for number, each in enumerate(self.techniques) if each.stage is stage))
            self.owners[name] = stage
        return name

    def reweighted(self, term: str, factor: float, beside: str) -> str:
        stage = self.owners.get(term)
        if stage is None or self.owners.get(beside) is stage:
            return ""
        option = f"--weight {stage.weight * factor:.2g}"
        return option if stage is self.stage else f'--also "{stage.technique} {option}"'

    def signals(self, step: Step) -> tuple[Signal, Signal]:
        """What student and teacher say of a batch."""
        student = Signal(step.task.prediction(step.output, step.batch), self.capture.take(), step.output)
        teacher = self.source.signal(step.batch)
        sick = teacher.sick()
        self.sick = sick if self.sick is None else self.sick | sick
        if any(each.stage.compares_logits for each in self.techniques):
            student, teacher = self._fitted(student, teacher)
        return student, teacher

    def counts(self, batch: Batch) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for number, each in enumerate(self.techniques):
            for name, count in each.stage.counts(batch, self.context.task).items():
                # which of the two it is called is known once there are terms
                found.setdefault(name, count)
                found[_numbered(name, number)] = count
        return found

    def diagnose(self) -> Iterator[str]:
        if self.sick is not None and bool(self.sick):
            yield "the teacher answered with nan or infinity for some batch; evaluate it by itself on this data first"

    def _fitted(self, student: Signal, teacher: Signal) -> tuple[Signal, Signal]:
        """Both in the same classes; that padding was cut off is noted once."""
        classes = student.logits.shape[-1], teacher.logits.shape[-1]
        student, teacher = same_classes(student, teacher, self.context.task)
        if classes[0] != classes[1] and not self.told:
            self.told = True
            self.context.note(f"vocabulary cut to {min(classes)}: the student's head has {classes[0]} rows, the teacher's {classes[1]}; the rest was taken for padding")
        return student, teacher

    def close(self, model: nn.Module) -> None:
        self.held.close()


def _numbered(name: str, technique: int) -> str:
    return f"{name} {technique + 1}"


def _weighted(term: Term, stage: DistillStage, share: float) -> float | Callable[[float], float]:
    """A term's weight among its technique's, times the technique's factor, times the teacher's share."""
    own = term.weight
    if not callable(own) and stage.weight_schedule == "constant" and not stage.weight_warmup:
        return own * stage.weight * share
    return lambda progress: (own(progress) if callable(own) else own) * stage.factor(progress) * share
