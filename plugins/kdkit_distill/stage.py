"""What all techniques of distillation share: their options, and what a technique says of itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor, nn

from kdkit.contract import Needs, Stage, TrainStage, param
from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.tasks import Task
from kdkit.training import Term, TrainPart
from kdkit_distill.control import compared, comparison_conflicts, comparison_lacks
from kdkit_distill.lesson import Lesson
from kdkit_distill.schedules import Shape, between, rising
from kdkit_distill.signals import Exchange, Pair, Signal
from kdkit_distill.sources import Live, Source
from kdkit_distill.students.catalogue import CATALOGUE
from kdkit_distill.students.spec import is_name, read

if TYPE_CHECKING:
    from kdkit.context import Context


class DistillStage(TrainStage):
    """A stage whose student learns from a teacher.

    loss = (1 - alpha) · label loss + alpha · weight · schedule · (the technique's terms)

    A technique gives `terms`; and `pairs` and `modules`, where it compares layers.
    """

    teacher: str = param("teacher", "the session's model to learn from; where none was given, the model the session began with", refers="model")
    student: str | None = param(
        None,
        "trained in place of the current model, which then teaches it: a model of the session, layers=0,2,5 or narrow=0.5 of the teacher, "
        "or a light net such as mobilenet-v2 or mobilenet-v2=0.5",
        refers="model",
    )
    alpha: float = param(0.9, "share of the teacher in the loss; the rest is the labels'", ge=0, le=1, search=(0.5, 1.0))
    labels: bool = param(True, "learn from labels too; --no-labels leaves all to the teacher and wants none")
    weight: float = param(1.0, "factor of the technique's terms", gt=0, search=(0.1, 10))
    weight_schedule: Shape = param("constant", "how that factor goes from its value to --weight-end times it", advanced=True)
    weight_end: float = param(0.0, "share of the factor that is left at the end of a linear or cosine schedule", ge=0, advanced=True)
    weight_warmup: float = param(0.0, "share of the training in which the factor rises from zero", ge=0, lt=1, advanced=True)
    control: str | None = param(None, "labelled data, such as train: the same student is trained on its labels alone too, and both are compared", refers="data")
    seeds: int = param(1, "pairs of distilled and control that are trained and compared; the first one's student is kept", ge=1)
    also: tuple[str, ...] = param((), 'more techniques in the same loss, as lines: --also "similarity --weight 3000" hints', advanced=True)

    cache: str | None = param(None, "file that keeps what the teacher says of each item, asked once; also for later runs", advanced=True)
    cache_as: Literal["fp32", "fp16"] = param("fp32", "fp32 keeps it to the bit, fp16 in half the room", advanced=True)

    # a student of its own may return its outputs in another form; the lesson itself compares what both say
    keeps_output = False

    sample_options: ClassVar[str] = "--control train"

    compares_logits: ClassVar[bool] = False
    """Whether the terms set logits side by side, so that both must know the same classes."""
    relational: ClassVar[bool] = False
    """Whether an item's value depends on which items stand beside it, so that batches can't be accumulated."""

    @classmethod
    def offers(cls, parameter: str) -> Iterable[str]:
        if parameter == "student":
            return [*CATALOGUE, "layers=0,2", "narrow=0.5"]
        if parameter == "also":
            from kdkit.plugins import manager

            return [stage.id.partition(".")[2] for stage in manager().stages().values() if stage.id.startswith("distill.") and not _apart(stage)]
        return ()

    @property
    def share(self) -> float:
        """Of the teacher in the loss."""
        return self.alpha if self.labels else 1.0

    def factor(self, progress: float) -> float:
        """What the technique's terms are multiplied by at `progress` of the training."""
        return self.weight * between(self.weight_schedule, 1.0, self.weight_end, progress) * rising(self.weight_warmup, progress)

    def needed(self) -> Needs:
        packages = dict.fromkeys(package for spec in self.specs for package in read(spec).packages)
        needs = Needs(train=True, teacher=True, labels=self.share < 1, packages=tuple(packages))
        for each in self.also_stages():
            needs |= each.needed()
        return needs

    @property
    def specs(self) -> tuple[str, ...]:
        """The students that it makes, as they were asked for."""
        return () if self.student is None else (self.student,)

    @property
    def fits(self) -> int:
        """How many trainings the stage runs, one after another, not counting those of a comparison."""
        return 1

    def references(self) -> Iterator[tuple[str, str, str]]:
        for parameter, kind, name in super().references():
            if parameter != "student" or is_name(name):
                yield parameter, kind, name

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        yield from comparison_conflicts(self)
        for each in (self, *self.also_stages()):
            who = "it" if each is self else f"--also {each.technique}"
            if each.relational and self.batch_size == 1:
                yield f"{who} compares the items of a batch, and --batch-size 1 leaves nothing to compare an item with"
            if each.relational and self.accumulate > 1:
                yield f"{who} compares the items of a batch, so batches can't be accumulated; leave out --accumulate"
        for each in self._beside():
            yield from (f"--also {each.technique}: {problem}" for problem in each.conflicts())
            if idle := [f"--{name.replace('_', '-')}" for name in each.changed() if name in OF_THE_LINE]:
                yield f"--also {each.technique} {' '.join(idle)}: one loop has one of these; say it of {self.title} itself"

    def check(self, model: nn.Module, context: Context) -> Iterator[str]:
        yield from self.conflicts()
        if self.student is not None:
            read(self.student, context)
        yield from comparison_lacks(self, context)
        for each in (self, *self.also_stages()):
            if reason := each.unsuited(context.task):
                yield f"{reason}; the task is {context.task.name}, and --task says what yours is"

    def learner(self, model: nn.Module, context: Context) -> nn.Module:
        return model if self.student is None else read(self.student, context).make(model, self.teacher, context)

    def beginning(self, model: nn.Module, context: Context) -> nn.Module:
        """The student as its training begins; from there the control begins too."""
        return self.learner(model, context)

    def teach(self, model: nn.Module, context: Context) -> nn.Module:
        """Train the student: one fit of the kit's loop, unless the technique wants several."""
        return context.fit(model, [self])

    def apply(self, model: nn.Module, context: Context) -> nn.Module | None:
        return self.teach(model, context) if self.control is None else compared(self, model, context)

    def lead(self, model: nn.Module, context: Context, stages: list[TrainStage]) -> nn.Module:
        return context.fit(model, stages) if self.control is None else compared(self, model, context, stages[1:])

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return Lesson(self, context)

    # what a technique says

    def alone(self, progress: float) -> bool:
        """Whether at `progress` of the training this technique teaches alone, without labels and the techniques beside it."""
        return False

    def source(self, context: Context) -> Source:
        """Where the teacher's signals come from."""
        return Live(self.teacher, context)

    def unsuited(self, task: Task) -> str:
        """Why the technique can't be used for a task; empty where it can."""
        return ""

    def unfit(self, student: Signal, teacher: Signal) -> str:
        """Why the technique can't compare what both say of one batch, looked at before training; empty where it can."""
        return ""

    def looks_inside(self) -> bool:
        """Whether layers are compared, and not only answers."""
        return type(self).pairs is not DistillStage.pairs

    def pairs(self, student: nn.Module, teacher: nn.Module | None, context: Context) -> tuple[Pair, ...]:
        """The layers that are compared.

        Args:
            teacher: None where only its signals are at hand.
        """
        return ()

    def modules(self, features: list[tuple[Tensor, Tensor]], context: Context) -> nn.ModuleDict:
        """What trains beside the student, never saved with it, such as projections; state that must survive an interrupt too.

        Args:
            features: (student's, teacher's) for each pair, of one probe batch.
        """
        return nn.ModuleDict()

    def beside(self, student: Signal, teacher: Signal, pairs: tuple[Pair, ...], context: Context) -> nn.ModuleDict:
        """`modules`, out of all that both say of the probe batch; for techniques whose modules depend on more than the pairs' features."""
        return self.modules([(student.features[pair.student], teacher.features[pair.teacher]) for pair in pairs], context)

    def terms(self, seen: Exchange) -> Iterable[Term]:
        """The technique's terms, with weights among themselves; values per item, (batch,) or (batch, tokens)."""
        raise NotImplementedError

    def counts(self, batch: Batch, task: Task) -> Mapping[str, int]:
        """How many values of a batch count in each term with a mask of its own, so that batches can be accumulated."""
        return {}

    def also_stages(self) -> list[DistillStage]:
        """The stages that `also` names, in the loop of this one: its data, labels and teacher are theirs.

        Raises:
            KdError: one is no technique of distillation, or not one that can stand beside another.
        """
        return [each.model_copy(update={name: getattr(self, name) for name in OF_THE_LINE & type(each).model_fields.keys()}) for each in self._beside()]

    def _beside(self) -> list[DistillStage]:
        """The stages that `also` names, as they are written."""
        from kdkit.pipeline import Pipeline

        stages = [stage for line in self.also for stage in Pipeline.from_lines(f"distill {line}").stages]
        for stage in stages:
            if reason := _apart(type(stage)):
                raise KdError(f"--also {stage.technique}: {reason}", f"name it first, and add the others to it: distill {stage.technique} --also ...")
        return stages  # type: ignore[return-value]


def _apart(technique: type[Stage]) -> str:
    """Why a technique can't stand beside another one in its loss; empty where it can."""
    if not issubclass(technique, DistillStage) or technique.terms is DistillStage.terms or technique.part is not DistillStage.part:
        return "it has no terms to add to another technique's"
    if technique.source is not DistillStage.source or technique.teach is not DistillStage.teach:
        return "it has teachers or trainings of its own, and --also adds to the terms of one teacher's"
    return ""


OF_THE_LINE = (TrainStage.model_fields.keys() | {"teacher", "student", "alpha", "labels", "control", "seeds", "cache", "cache_as"}) - {"also"}
"""Options that a loop has once: those of a technique that `--also` names do not count."""
