"""What techniques over layers share: which layers are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import nn

from kdkit.contract import param
from kdkit_distill.lesson import DistillStage
from kdkit_distill.matching import parsed, suggested
from kdkit_distill.signals import Pair

if TYPE_CHECKING:
    from kdkit.context import Context


class LayerStage(DistillStage):
    """A technique that compares what layers of student and teacher give."""

    layers: tuple[str, ...] = param((), "pairs student_layer=teacher_layer, or one name for both; suggested when not said")
    match: Literal["uniform", "last"] = param("uniform", "which layers are suggested: spread over both nets, or the last ones")
    count: int | None = param(None, "how many pairs are suggested; as many as the student has to offer when not said", ge=1)

    def pairs(self, student: nn.Module, teacher: nn.Module | None, context: Context) -> tuple[Pair, ...]:
        return parsed(self.layers) if self.layers else suggested(student, teacher, context.example, self.match, self.count)
