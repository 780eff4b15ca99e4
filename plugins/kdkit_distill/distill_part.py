"""The part of distillation in a training: runs the teacher on each batch and passes both outputs to the techniques."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from kdkit import Batch, KdError, Step, Term, TrainPart
from kdkit.models import FunctionModel, device_of
from kdkit.training import Pull
from kdkit_distill.layers.heads import same_classes
from kdkit_distill.layers.matching import Capture, probed
from kdkit_distill.schedules import Shape
from kdkit_distill.signals import Pair, Signal, SignalPair
from kdkit_distill.teachers.cache.source import Cached

if TYPE_CHECKING:
    from kdkit import Context, Task
    from kdkit_distill.teachers.sources import Source


class Technique(Protocol):
    """What the part needs from a technique; `kdkit_distill.technique.DistillStage` implements it."""

    teacher: str
    data: str
    cache: str | None
    cache_as: Literal["fp32", "fp16"]
    weight_schedule: Shape
    weight_warmup: float
    compares_logits: ClassVar[bool]
    relational: ClassVar[bool]

    @property
    def title(self) -> str: ...
    @property
    def technique(self) -> str: ...
    @property
    def share(self) -> float: ...
    @property
    def constant(self) -> float: ...
    @property
    def pull(self) -> float | None: ...
    def with_techniques(self) -> Sequence[Technique]: ...
    def source(self, context: Context) -> Source: ...
    def factor(self, progress: float) -> float: ...
    def is_warm_up_only(self, progress: float) -> bool: ...
    def incompatible_task(self, task: Task) -> str: ...
    def incompatible_signals(self, student: Signal, teacher: Signal) -> str: ...
    def looks_inside(self) -> bool: ...
    def pairs(self, student: nn.Module, teacher: nn.Module | None, context: Context) -> tuple[Pair, ...]: ...
    def extra_modules(self, student: Signal, teacher: Signal, pairs: tuple[Pair, ...], context: Context) -> nn.ModuleDict: ...
    def terms(self, seen: SignalPair) -> Iterable[Term]: ...
    def counts(self, batch: Batch, task: Task) -> Mapping[str, int]: ...


@dataclass
class ActiveTechnique:
    """One technique of the part: its stage, its pairs of layers, and its modules."""

    stage: Technique
    pairs: tuple[Pair, ...] = ()
    modules: nn.ModuleDict = field(default_factory=nn.ModuleDict)


class DistillPart(TrainPart):
    """Runs the teacher on each batch and passes both outputs to the techniques."""

    def __init__(self, stage: Technique, context: Context):
        self.stage, self.context = stage, context
        self.techniques = [ActiveTechnique(each) for each in (stage, *stage.with_techniques())]
        self.whole_batch = any(each.stage.relational for each in self.techniques)
        self.source = stage.source(context)
        if stage.cache:
            self.source = Cached(self.source, stage.cache, context.data(stage.data), context, stage.cache_as, self._top())
        self.capture = Capture()
        self.held = contextlib.ExitStack()
        self.noted_cut = self.noted_skip = False
        self.nonfinite: Tensor | None = None
        self.owners: dict[str, Technique] = {}

    def _top(self) -> tuple[int, float] | None:
        """(k, temperature) of the classes that a cache may keep; None if a technique compares all classes."""
        kept = {(getattr(each.stage, "top_k", None), getattr(each.stage, "temperature", 1.0)) for each in self.techniques if each.stage.compares_logits}
        count, temperature = kept.pop() if len(kept) == 1 else (None, 1.0)
        return (count, temperature) if count else None

    def open(self, model: nn.Module) -> None:
        for each in self.techniques:
            if reason := reason_against(each.stage, self.context.task):
                raise KdError(f"{each.stage.title}: {reason}", f"the task is {self.context.task.name}; set yours with --task")
        if not self.stage.share:
            return
        self.held.callback(self.source.close)
        for each in self.techniques:
            if each.stage.looks_inside() and isinstance(self.source.model, FunctionModel):
                raise KdError(
                    f"{each.stage.title} compares layers, and the teacher {self.stage.teacher} is a function without layers",
                    "pass it as a model: %kd set --teacher {model}",
                    "or use a technique that compares outputs: distill soft",
                )
            each.pairs = each.stage.pairs(model, self.source.model, self.context)
        named = [pair for each in self.techniques for pair in each.pairs]
        device = device_of(model)
        self.source.open(device, [pair.teacher for pair in named])
        self._probe(model, [pair.student for pair in named], device)
        self.capture = self.held.enter_context(Capture(model, [pair.student for pair in named]))

    def _probe(self, model: nn.Module, layers: list[str], device: torch.device) -> None:
        """Run one batch before training, to check that the outputs can be compared and to get the shapes of the features."""
        batch = self.context.data(self.stage.data).example().to(device)
        teacher = self.source.signal(batch)
        if teacher.has_nonfinite():
            raise KdError("the teacher's output is nan or infinite", "evaluate the teacher on this data first; is the input scaled as in its training?")
        student, output = probed(model, layers, batch)
        signal = Signal(self.context.task.prediction(output, batch), student, output)
        if any(each.stage.compares_logits for each in self.techniques):
            signal, teacher = self._fitted(signal, teacher)
        for each in self.techniques:
            if reason := each.stage.incompatible_signals(signal, teacher):
                raise KdError(f"{each.stage.title}: {reason}")
        for number, each in enumerate(self.techniques):
            each.modules = each.stage.extra_modules(signal, teacher, each.pairs, self.context)
            self.modules[str(number)] = each.modules

    def terms(self, step: Step) -> Iterator[Term]:
        warm_up_only = any(each.stage.is_warm_up_only(step.progress) for each in self.techniques)
        if self.stage.share < 1 and not warm_up_only:
            yield Term.from_labels(step, 1 - self.stage.share)
        if self.stage.share > 0:
            yield from self.taught(step)

    def taught(self, step: Step) -> Iterator[Term]:
        """The techniques' terms, scaled by the teacher's share of the loss."""
        student, teacher = self.signals(step)
        for each in [each for each in self.techniques if each.stage.is_warm_up_only(step.progress)] or self.techniques:
            if skipped := [pair.student for pair in each.pairs if pair.student not in student.features]:
                yield self._without(each, skipped, student, step)
                continue
            for term in each.stage.terms(SignalPair(student, teacher, step, each.pairs, each.modules)):
                name = self._named(term.name, each.stage)
                yield replace(term, name=name, weight=_weighted(term, each.stage, self.stage.share), pull=self._pull(term, each.stage, name))

    def _pull(self, term: Term, stage: Technique, name: str) -> Pull | None:
        """The term's own pull, in the names of this part; or that of its technique, with the teacher's share of the loss."""
        if term.pull is not None:
            suffix = name.removeprefix(term.name)
            return replace(term.pull, group=term.pull.group + suffix, beside=term.pull.beside and term.pull.beside + suffix)
        if stage.pull is None:
            return None
        alike = [each.stage for each in self.techniques if each.stage.technique == stage.technique]
        number = f" {1 + next(place for place, each in enumerate(alike) if each is stage)}" if len(alike) > 1 else ""
        group = f"{'' if stage is self.stage else '--also '}{stage.technique}{number}"
        return Pull(group, stage.pull * self.stage.share, constant=stage.constant)

    def _without(self, technique: ActiveTechnique, skipped: list[str], student: Signal, step: Step) -> Term:
        """A term of zeros for a batch in which layer drop skipped layers that the technique compares; notes it once."""
        if not self.noted_skip:
            self.noted_skip = True
            self.context.note(
                f"{technique.stage.title}: {', '.join(skipped)} did not run in some batches of the training (layer drop); these batches do without the technique's terms"
            )
        outputs = step.task.losses(step.output, step.batch) if student.logits is None else student.logits
        zeros = outputs.flatten(1).sum(1).nan_to_num() if outputs.dim() > 1 else outputs.nan_to_num()
        return Term(self._named("layers skipped", technique.stage), zeros * 0, 1.0)

    def _named(self, name: str, stage: Technique) -> str:
        """The name of a term, with a number if an earlier technique has a term of that name."""
        if self.owners.setdefault(name, stage) is not stage:
            name = _numbered(name, next(number for number, each in enumerate(self.techniques) if each.stage is stage))
            self.owners[name] = stage
        return name

    def option_for_weight(self, term: str, factor: float, beside: str) -> str:
        stage = self.owners.get(term)
        if stage is None or self.owners.get(beside) is stage:
            return ""
        option = f"--weight {stage.constant * factor:.2g}"
        return option if stage is self.stage else f'--also "{stage.technique} {option}"'

    def signals(self, step: Step) -> tuple[Signal, Signal]:
        """The outputs of student and teacher for a batch."""
        logits = None if step.task.loss_from_model else step.task.prediction(step.output, step.batch)
        student = Signal(logits, self.capture.take(complete=False), step.output)
        teacher = self.source.signal(step.batch)
        nonfinite = teacher.has_nonfinite()
        self.nonfinite = nonfinite if self.nonfinite is None else self.nonfinite | nonfinite
        if any(each.stage.compares_logits for each in self.techniques):
            student, teacher = self._fitted(student, teacher)
        return student, teacher

    def counts(self, batch: Batch) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for number, each in enumerate(self.techniques):
            for name, count in each.stage.counts(batch, self.context.task).items():
                # whether the term has a number in its name is known once there are terms
                found.setdefault(name, count)
                found[_numbered(name, number)] = count
        return found

    def diagnose(self) -> Iterator[str]:
        if self.nonfinite is not None and bool(self.nonfinite):
            yield "the teacher's output was nan or infinite for some batch; evaluate the teacher on this data first"

    def _fitted(self, student: Signal, teacher: Signal) -> tuple[Signal, Signal]:
        """Both signals over the same classes; notes once that padding was cut off."""
        classes = student.logits.shape[-1], teacher.logits.shape[-1]
        student, teacher = same_classes(student, teacher, self.context.task)
        if classes[0] != classes[1] and not self.noted_cut:
            self.noted_cut = True
            self.context.note(f"vocabulary cut to {min(classes)}: the student's head has {classes[0]} rows, the teacher's {classes[1]}; kdkit treats the rest as padding")
        return student, teacher

    def close(self, model: nn.Module) -> None:
        self.held.close()


def reason_against(technique: Technique, task: Task) -> str:
    """Why a technique can't be used for a task; empty if it can."""
    if task.loss_from_model and (technique.compares_logits or not technique.looks_inside()):
        return "in training the model returns its losses in place of an output that could be compared; distill hints and distill attention compare layers"
    return technique.incompatible_task(task)


def _numbered(name: str, technique: int) -> str:
    return f"{name} {technique + 1}"


def _weighted(term: Term, stage: Technique, share: float) -> float | Callable[[float], float]:
    """A term's weight within its technique, times the technique's factor, times the teacher's share."""
    own = term.weight
    if not callable(own) and stage.weight_schedule == "constant" and not stage.weight_warmup:
        return own * stage.constant * share
    return lambda progress: (own(progress) if callable(own) else own) * stage.factor(progress) * share
