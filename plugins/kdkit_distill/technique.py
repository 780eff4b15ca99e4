"""What all techniques of distillation share: their options, and the methods that a technique overrides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor, nn

from kdkit import Batch, KdError, Needs, Pipeline, Stage, Task, Term, TrainPart, TrainStage, known_stages, param
from kdkit.training import fit
from kdkit_distill.distill_part import DistillPart, reason_against
from kdkit_distill.schedules import Shape, between, rising
from kdkit_distill.signals import Pair, Signal, SignalPair
from kdkit_distill.students.catalogue import CATALOGUE
from kdkit_distill.students.spec import is_name, read
from kdkit_distill.teachers.sources import ModelSource, Source
from kdkit_distill.weighting import Weight, setting_of, weighted

if TYPE_CHECKING:
    from kdkit import Context


COMPARE = (
    'leave it out, and compare any pipeline with a control: %kd compare-with "tune finetune --data train" --same-loop',
    'the same --student trained on labels alone: %kd compare-with "same --alpha 0"',
)
"""Hints for a line of an earlier release, in which the comparison was an option of distillation."""


class DistillStage(TrainStage):
    """A stage whose student learns from a teacher.

    loss = (1 - alpha) · label loss + alpha · weight · schedule · (the technique's terms)

    By default the weight is chosen from the gradients of the first steps, if the technique declares a pull with
    `kdkit_distill.weighting.weighted`; the version's notes show it beside the published constant.

    A technique implements `terms`; if it compares layers, also `pairs` and `modules`.
    """

    teacher: str = param("teacher", "the session's model to learn from; default: the session's teacher, else its first model", names="model", main=True)
    student: str | None = param(
        None,
        "trained in place of the current model, which becomes its teacher: a model of the session, layers=0,2,5 or narrow=0.5 of the teacher, "
        "or a light net such as mobilenet-v2 or mobilenet-v2=0.5",
        names="model",
    )
    alpha: float = param(0.9, "share of the teacher in the loss; the rest is the labels'", ge=0, le=1, search=(0.5, 1.0))
    labels: bool = param(True, "learn from labels too; --no-labels learns from the teacher alone and needs none")
    weight: Weight = weighted(1.0)
    weight_schedule: Shape = param("constant", "how that factor changes from its value to --weight-end times it", advanced=True)
    weight_end: float = param(0.0, "share of the factor at the end of a linear or cosine schedule", ge=0, advanced=True)
    weight_warmup: float = param(0.0, "share of the training in which the factor rises from zero", ge=0, lt=1, advanced=True)
    also: tuple[str, ...] = param((), 'more techniques in the same loss, as lines: --also similarity "hints --count 1"', advanced=True)

    cache: str | None = param(None, "file that caches the teacher's output for each item; later runs reuse it", names="path", advanced=True)
    cache_as: Literal["fp32", "fp16"] = param("fp32", "fp32 keeps it bit-exact, fp16 takes half the space", advanced=True)

    # a separate student may return its outputs in another form; the part itself compares both outputs
    keeps_output = False

    removed_options: ClassVar[Mapping[str, Sequence[str]]] = dict.fromkeys(("control", "seeds"), COMPARE)

    compares_logits: ClassVar[bool] = False
    """Whether the terms compare logits class by class, so that both models need the same classes."""
    relational: ClassVar[bool] = False
    """Whether an item's loss depends on the other items of its batch, so that batches can't be accumulated."""

    @classmethod
    def suggestions(cls, parameter: str) -> Iterable[str]:
        if parameter == "student":
            return [*CATALOGUE, "layers=0,2", "narrow=0.5"]
        if parameter == "also":
            return [stage.id.partition(".")[2] for stage in known_stages("distill").values() if not _reason_not_combined(stage)]
        return ()

    @property
    def share(self) -> float:
        """The teacher's share of the loss."""
        return self.alpha if self.labels else 1.0

    @property
    def constant(self) -> float:
        """The factor of the technique's terms as a number: the published one, or the one that is given."""
        return setting_of(type(self)).weight if isinstance(self.weight, str) else self.weight

    @property
    def pull(self) -> float | None:
        """The ratio of gradients from which the loop chooses the weight; None if the weight is a constant."""
        return setting_of(type(self)).pull if self.weight == "auto" else None

    def factor(self, progress: float) -> float:
        """The factor of the technique's terms at `progress` of the training."""
        return self.constant * between(self.weight_schedule, 1.0, self.weight_end, progress) * rising(self.weight_warmup, progress)

    def required_inputs(self) -> Needs:
        packages = dict.fromkeys(package for spec in self.specs for package in read(spec).packages)
        needs = Needs(train=True, teacher=True, labels=self.share < 1, packages=tuple(packages))
        for each in self.with_techniques():
            needs |= each.required_inputs()
        return needs

    @property
    def specs(self) -> tuple[str, ...]:
        """The specifications of the students that it makes."""
        return () if self.student is None else (self.student,)

    def named_objects(self) -> Iterator[tuple[str, str, str]]:
        for parameter, kind, name in super().named_objects():
            if parameter != "student" or is_name(name):
                yield parameter, kind, name

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        for each in (self, *self.with_techniques()):
            who = "it" if each is self else f"--also {each.technique}"
            if each.relational and self.batch_size == 1:
                yield f"{who} compares the items of a batch, but --batch-size 1 has only one"
            if each.relational and self.accumulate > 1:
                yield f"{who} compares the items of a batch, so batches can't be accumulated; leave out --accumulate"
        for each in self._written_techniques():
            yield from (f"--also {each.technique}: {problem}" for problem in each.conflicts())
            if idle := [f"--{name.replace('_', '-')}" for name in each.changed() if name in OF_THE_LINE]:
                yield f"--also {each.technique} {' '.join(idle)}: the loop has one value for it; set it on {self.title} itself"

    def check(self, model: nn.Module, context: Context) -> Iterator[str]:
        yield from self.conflicts()
        if self.student is not None:
            read(self.student, context)
        for each in (self, *self.with_techniques()):
            if reason := reason_against(each, context.task):
                yield f"{reason}; the task is {context.task.name}; set yours with --task"

    def make_student(self, model: nn.Module, context: Context) -> nn.Module | None:
        return None if self.student is None else read(self.student, context).make(model, self.teacher, context)

    def train(self, model: nn.Module, context: Context) -> nn.Module:
        """Train the student: one run of the training loop, unless the technique needs several."""
        return fit(model, [self], context)

    def apply(self, model: nn.Module, context: Context) -> nn.Module | None:
        return self.train(model, context)

    def reference_model(self, model: nn.Module, context: Context) -> tuple[str, nn.Module] | None:
        """The teacher, if it is one model in memory; None for several teachers, or if only cached signals are available."""
        source = self.source(context if self.student is None else replace(context, original=model))
        try:
            return None if source.model is None else (self.teacher, source.model)
        finally:
            source.close()

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return DistillPart(self, context)

    # methods that a technique overrides

    def is_warm_up_only(self, progress: float) -> bool:
        """Whether at `progress` of the training only this technique contributes to the loss, without labels and the other techniques."""
        return False

    def source(self, context: Context) -> Source:
        """The source of the teacher's signals."""
        return ModelSource(self.teacher, context)

    def incompatible_task(self, task: Task) -> str:
        """Why the technique can't be used for a task; empty if it can."""
        return ""

    def incompatible_signals(self, student: Signal, teacher: Signal) -> str:
        """Why the technique can't compare the two outputs of a batch, checked before training; empty if it can."""
        return ""

    def looks_inside(self) -> bool:
        """Whether layers are compared, not only outputs."""
        return type(self).pairs is not DistillStage.pairs

    def pairs(self, student: nn.Module, teacher: nn.Module | None, context: Context) -> tuple[Pair, ...]:
        """The pairs of layers to compare.

        Args:
            teacher: None if only its signals are available.
        """
        return ()

    def modules(self, features: list[tuple[Tensor, Tensor]], context: Context) -> nn.ModuleDict:
        """Modules trained with the student but not saved with it, such as projections; also state that checkpoints must contain.

        Args:
            features: (student's feature, teacher's feature) of each pair, for one probe batch.
        """
        return nn.ModuleDict()

    def extra_modules(self, student: Signal, teacher: Signal, pairs: tuple[Pair, ...], context: Context) -> nn.ModuleDict:
        """`modules` from the full signals of the probe batch; for techniques whose modules depend on more than the pairs' features."""
        return self.modules([(student.features[pair.student], teacher.features[pair.teacher]) for pair in pairs], context)

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        """The technique's terms with their relative weights; one value per item, (batch,), or per token, (batch, tokens)."""
        raise NotImplementedError

    def counts(self, batch: Batch, task: Task) -> Mapping[str, int]:
        """The number of counted values of a batch for each term with its own mask, needed to accumulate batches."""
        return {}

    def with_techniques(self) -> list[DistillStage]:
        """The stages that `also` names, with the data, labels and teacher of this one.

        Raises:
            KdError: one is not a distillation technique, or can't be combined with another.
        """
        return [each.model_copy(update={name: getattr(self, name) for name in OF_THE_LINE & type(each).model_fields.keys()}) for each in self._written_techniques()]

    def _written_techniques(self) -> list[DistillStage]:
        """The stages that `also` names, as they are written."""
        stages = [stage for line in self.also for stage in Pipeline.from_lines(f"distill {line}").stages]
        for stage in stages:
            if reason := _reason_not_combined(type(stage)):
                raise KdError(f"--also {stage.technique}: {reason}", f"name it first, and add the others to it: distill {stage.technique} --also ...")
        return stages


def _reason_not_combined(technique: type[Stage]) -> str:
    """Why a technique can't be combined with another one in its loss; empty if it can."""
    if not issubclass(technique, DistillStage) or technique.terms is DistillStage.terms or technique.part is not DistillStage.part:
        return "it has no terms to add to another technique's"
    if technique.source is not DistillStage.source or technique.train is not DistillStage.train:
        return "it has its own teachers or trainings, but --also only adds terms for the same teacher"
    return ""


OF_THE_LINE = (TrainStage.model_fields.keys() | {"teacher", "student", "alpha", "labels", "cache", "cache_as"}) - {"also"}
"""Options with one value for the whole loop; a technique in `--also` can't set them."""
