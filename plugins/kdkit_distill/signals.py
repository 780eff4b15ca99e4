"""Signals: a model's output for a batch, and those of student and teacher together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from kdkit import KdError, Step
from kdkit.tasks import at_least_float32


@dataclass(frozen=True)
class Pair:
    """Two layers to compare, by their names in the student and in the teacher.

    >>> str(Pair("layer2", "layer4"))
    'layer2=layer4'
    """

    student: str
    teacher: str

    def __str__(self) -> str:
        return f"{self.student}={self.teacher}"


@dataclass(frozen=True)
class TopK:
    """A distribution over many classes: the most probable classes, and the total probability of all others.

    The mass of the others is important: with it and k = 8 a student's gradient is closer to the exact one than with
    k = 512 and the kept classes rescaled to sum 1.

    Attributes:
        values: log-probabilities of the kept classes, (..., k), the greatest first.
        indices: the numbers of these classes, (..., k), integers.
        tail: log of the mass of all other classes, (...); -inf if there are none.
        classes: the number of all classes.
        temperature: of the teacher's softmax; it can't be changed afterwards.

    >>> kept = top_k(torch.tensor([[0.0, 2.0, 1.0, -1.0]]), 2)
    >>> kept.indices, (kept.tail.exp() + kept.values.exp().sum(-1)).round(decimals=4)
    (tensor([[1, 2]]), tensor([1.]))
    """

    values: Tensor
    indices: Tensor
    tail: Tensor
    classes: int
    temperature: float = 1.0

    @property
    def shape(self) -> torch.Size:
        """The shape of the full logits: (..., classes)."""
        return torch.Size((*self.values.shape[:-1], self.classes))

    def to(self, device: str | torch.device) -> TopK:
        """The same on a device."""
        return replace(self, values=self.values.to(device), indices=self.indices.to(device), tail=self.tail.to(device))

    def __getitem__(self, rows: Any) -> TopK:
        """Some of its rows, by an index of the leading dimensions."""
        return replace(self, values=self.values[rows], indices=self.indices[rows], tail=self.tail[rows])


def top_k(logits: Tensor, k: int, temperature: float = 1.0) -> TopK:
    """The k most probable classes of softmax(logits / temperature), and the mass of the rest.

    Args:
        logits: (..., classes); computed in float32 at least.
        k: number of classes to keep; all if there are fewer.

    >>> top_k(torch.tensor([[0.0, 3.0, 1.0]]), 3).tail
    tensor([-inf])
    """
    scaled = at_least_float32(logits) / temperature
    best = scaled.topk(min(k, scaled.shape[-1]), -1)
    mass = scaled.logsumexp(-1)
    tail = scaled.scatter(-1, best.indices, -torch.inf).logsumexp(-1) - mass
    return TopK(best.values - mass[..., None], best.indices, tail, scaled.shape[-1], temperature)


def first_classes(logits: Tensor | TopK, classes: int) -> Tensor | TopK:
    """Logits of the first classes only, to cut the padding of a head.

    Raises:
        KdError: one of the kept classes is not among them.

    >>> first_classes(torch.zeros(2, 5), 3).shape
    torch.Size([2, 3])
    """
    if not isinstance(logits, TopK):
        return logits[..., :classes]
    if logits.classes > classes and int(logits.indices.max()) >= classes:
        raise KdError(
            f"the teacher's cached output contains class {int(logits.indices.max())}, but the student has {classes} classes",
            "that class is not padding; give the student the teacher's head",
        )
    return replace(logits, classes=classes)


@dataclass(frozen=True)
class Signal:
    """A model's output for a batch. Objectives get only signals, independent of their source.

    Attributes:
        logits: the task's prediction: (batch, classes), (batch, tokens, classes), vectors or numbers. A teacher's may be a
            `TopK` if its source keeps only that; techniques that need all classes use `dense`. None for a student that returns its
            losses in training.
        features: outputs of layers by name: maps (batch, channels, height, width), tokens (batch, tokens, hidden) or
            vectors (batch, size).
        output: the value that the model returned; None if the signal does not come from a model in memory.
    """

    logits: Any
    features: Mapping[str, Tensor] = field(default_factory=dict)
    output: Any = None

    @property
    def dense(self) -> Tensor:
        """The logits of all classes.

        Raises:
            KdError: only the most probable ones are available.
        """
        if isinstance(self.logits, TopK):
            kept, classes = self.logits.values.shape[-1], self.logits.classes
            raise KdError(f"the teacher's output has {kept} of {classes} classes, but the technique compares all", "leave out --top-k, or use distill soft")
        return self.logits

    def has_nonfinite(self) -> Tensor:
        """Whether the logits contain nan or infinity, or rule out every class: one bool on their device.

        >>> [bool(Signal(torch.tensor([[0.0, value]])).has_nonfinite()) for value in (1.0, -torch.inf, torch.inf, torch.nan)]
        [False, False, True, True]
        """
        values = self.logits.values if isinstance(self.logits, TopK) else self.logits
        # the maximum of a row is nan if any value is nan
        return ~torch.isfinite(values.amax(-1)).all()


@dataclass(frozen=True)
class SignalPair:
    """Both signals of one batch, as a technique sees them.

    Attributes:
        student: with a graph.
        teacher: without.
        step: batch, task and progress; `step.task.mask(step.batch)` marks the tokens that count.
        pairs: of layers that the technique compares.
        modules: the technique's own, trained with the student.
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
