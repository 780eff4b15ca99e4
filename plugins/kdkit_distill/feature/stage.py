"""What techniques over layers share: which layers are compared, how their shapes meet, and what of them counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from kdkit.contract import param
from kdkit.training import Step
from kdkit_distill.matching import parsed, suggested
from kdkit_distill.outline import observed
from kdkit_distill.pooling import real_tokens, token_mean
from kdkit_distill.precision import wide_pair
from kdkit_distill.projections import Projection, matched, sequence_of
from kdkit_distill.signals import Exchange, Pair
from kdkit_distill.stage import DistillStage

if TYPE_CHECKING:
    from kdkit.context import Context


class LayerStage(DistillStage):
    """A technique that compares what layers of student and teacher give."""

    alpha: float = param(0.5, "share of the teacher in the loss; the rest is the labels', at .5 as the papers add them", ge=0, le=1, search=(0.3, 1.0))
    layers: tuple[str, ...] = param((), "pairs student_layer=teacher_layer, or one name for both; suggested when not said")
    match: Literal["uniform", "last"] = param("uniform", "which layers are suggested: spread over both nets, or the last ones")
    count: int | None = param(None, "how many pairs are suggested; as many as the student has to offer when not said", ge=1)

    def pairs(self, student: nn.Module, teacher: nn.Module | None, context: Context) -> tuple[Pair, ...]:
        pairs = parsed(self.layers) if self.layers else self.suggested_pairs(student, teacher, context)
        context.note(f"{self.title} compares {', '.join(map(str, pairs))}")
        for model, names in ((student, [pair.student for pair in pairs]), (teacher, [pair.teacher for pair in pairs])):
            seen = observed(model, context.example) if model is not None else {}
            for name in dict.fromkeys(names):
                if name in seen and seen[name].calls > 1:
                    context.note(f"layer {name} of {type(model).__name__} runs {seen[name].calls} times in a pass; what it gives last is compared")
        return pairs

    def suggested_pairs(self, student: nn.Module, teacher: nn.Module | None, context: Context) -> tuple[Pair, ...]:
        """The pairs to compare where none were named."""
        return suggested(student, teacher, context.example, self.match, self.count)


class ProjectedStage(LayerStage):
    """A technique that compares features of one shape: the student's is projected, by a module that trains beside it."""

    def modules(self, features: list[tuple[Tensor, Tensor]], context: Context) -> nn.ModuleDict:
        sequence = sequence_of(context.example)
        return nn.ModuleDict({str(number): Projection.between(student, teacher, sequence) for number, (student, teacher) in enumerate(features)})

    def projected(self, seen: Exchange) -> Iterator[tuple[Tensor, Tensor]]:
        """(student's, teacher's) of one shape for each pair, at least float32."""
        for key, student, teacher in seen.features():
            yield seen.modules[key](student, teacher)


def placed(seen: Exchange) -> Iterator[tuple[Tensor, Tensor]]:
    """(student's, teacher's) with as many places for each pair, whatever their widths; at least float32."""
    for _, student, teacher in seen.features():
        yield matched(*wide_pair(student, teacher), sequence_of(seen.step.batch))


def term_name(kind: str, pair: Pair, seen: Exchange) -> str:
    """The kind of a pair's term, with its layer where there are several."""
    return kind if len(seen.pairs) == 1 else f"{kind} {pair.student}"


def counted(values: Tensor, step: Step) -> Tensor:
    """Values of tokens as the loop counts them: (batch, tokens) where the task counts tokens, else an item's mean over real ones.

    Args:
        values: (batch,), or (batch, tokens); what stands in padding does not matter.
    """
    if values.dim() < 2:
        return values
    mask = step.task.mask(step.batch)
    if mask is not None and mask.shape == values.shape:
        return values
    return token_mean(values, real_tokens(step.batch, values.shape[1]))
