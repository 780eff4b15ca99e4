"""The base classes of techniques that compare layers: choice of the layers, projection of their shapes, masking of padding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from kdkit import Step, param
from kdkit_distill.layers.matching import parsed, suggested
from kdkit_distill.layers.pooling import real_tokens, token_mean
from kdkit_distill.layers.projections import Projection, matched, sequence_of
from kdkit_distill.layers.stage_detection import observed
from kdkit_distill.precision import wide_pair
from kdkit_distill.signals import Pair, SignalPair
from kdkit_distill.technique import DistillStage

if TYPE_CHECKING:
    from kdkit import Context


class LayerStage(DistillStage):
    """A technique that compares outputs of layers of student and teacher."""

    alpha: float = param(
        0.5, "share of the teacher in the loss; the rest is the labels'; 0.5 weighs both equally, as in the papers", ge=0, le=1, search=(0.3, 1.0), main=True
    )
    layers: tuple[str, ...] = param((), "pairs student_layer=teacher_layer, or one name for both; default: chosen by --match")
    match: Literal["uniform", "last"] = param("uniform", "which layers are chosen: spread over both nets, or the last ones")
    count: int | None = param(None, "number of chosen pairs; default: one for each layer of the student", ge=1)

    def pairs(self, student: nn.Module, teacher: nn.Module | None, context: Context) -> tuple[Pair, ...]:
        pairs = parsed(self.layers) if self.layers else self.suggested_pairs(student, teacher, context)
        context.note(f"{self.title} compares {', '.join(map(str, pairs))}")
        for model, names in ((student, [pair.student for pair in pairs]), (teacher, [pair.teacher for pair in pairs])):
            seen = observed(model, context.example) if model is not None else {}
            for name in dict.fromkeys(names):
                if name in seen and seen[name].calls > 1:
                    context.note(f"layer {name} of {type(model).__name__} runs {seen[name].calls} times in a forward pass; its last output is compared")
        return pairs

    def suggested_pairs(self, student: nn.Module, teacher: nn.Module | None, context: Context) -> tuple[Pair, ...]:
        """The pairs to compare if --layers names none."""
        return suggested(student, teacher, context.example, self.match, self.count)


class TwoStages(LayerStage):
    """A technique that may train alone in the first part of the training, and leave the rest to the labels and the other techniques."""

    @property
    def first_share(self) -> float:
        """The share of the training, at its start, in which only this technique counts; 0: it counts all the time, beside the others."""
        raise NotImplementedError

    def is_warm_up_only(self, progress: float) -> bool:
        return progress < self.first_share

    def is_over(self, progress: float) -> bool:
        """Whether the technique's part of the training is over."""
        return self.first_share > 0 and not self.is_warm_up_only(progress)


class ProjectedStage(LayerStage):
    """A technique that compares features of one shape; a module trained with the student projects its features."""

    def modules(self, features: list[tuple[Tensor, Tensor]], context: Context) -> nn.ModuleDict:
        sequence = sequence_of(context.example)
        return nn.ModuleDict({str(number): Projection.between(student, teacher, sequence) for number, (student, teacher) in enumerate(features)})

    def projected(self, seen: SignalPair) -> Iterator[tuple[Tensor, Tensor]]:
        """(student's feature, teacher's feature) of one shape for each pair, at least float32."""
        for key, student, teacher in seen.features():
            yield seen.modules[key](student, teacher)


def placed(seen: SignalPair) -> Iterator[tuple[Tensor, Tensor]]:
    """(student's feature, teacher's feature) with the same places for each pair, at least float32; widths may differ."""
    for _, student, teacher in seen.features():
        yield matched(*wide_pair(student, teacher), sequence_of(seen.step.batch))


def term_name(kind: str, pair: Pair, seen: SignalPair) -> str:
    """The name of a pair's term: its kind, and its layer if there are several pairs."""
    return kind if len(seen.pairs) == 1 else f"{kind} {pair.student}"


def counted(values: Tensor, step: Step) -> Tensor:
    """Values as the loop counts them: (batch, tokens) if the task counts tokens, else each item's mean over its real tokens.

    Args:
        values: (batch,), or (batch, tokens); values in padding are ignored.
    """
    if values.dim() < 2:
        return values
    mask = step.task.mask(step.batch)
    if mask is not None and mask.shape == values.shape:
        return values
    return token_mean(values, real_tokens(step.batch, values.shape[1]))
