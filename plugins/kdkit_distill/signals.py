"""Signals: what a model says of a batch, and both models' signals side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from kdkit.training import Step


@dataclass(frozen=True)
class Pair:
    """Two layers that are compared, by their names in the student and in the teacher.

    >>> str(Pair("layer2", "layer4"))
    'layer2=layer4'
    """

    student: str
    teacher: str

    def __str__(self) -> str:
        return f"{self.student}={self.teacher}"


@dataclass(frozen=True)
class Signal:
    """What a model says of a batch. Objectives see signals only, and never learn where they come from.

    Attributes:
        logits: the task's prediction: (batch, classes), (batch, tokens, classes), vectors or numbers.
        features: outputs of layers by name: maps (batch, channels, height, width), tokens (batch, tokens, hidden) or
            vectors (batch, size).
        output: whatever the model returned; None where the signal does not come from a model at hand.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    output: Any = None


@dataclass(frozen=True)
class Exchange:
    """Both answers to one batch, as a technique sees them.

    Attributes:
        student: with a graph.
        teacher: without.
        step: batch, task and progress; `step.task.mask(step.batch)` tells which tokens count.
        pairs: of layers that the technique compares.
        modules: the technique's own, which train beside the student.
    """

    student: Signal
    teacher: Signal
    step: Step
    pairs: tuple[Pair, ...] = ()
    modules: nn.ModuleDict = field(default_factory=nn.ModuleDict)

    def features(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(key of the pair, student's feature, teacher's feature); the key is that of the pair's module in `modules`."""
        for number, pair in enumerate(self.pairs):
            yield str(number), self.student.features[pair.student], self.teacher.features[pair.teacher]
