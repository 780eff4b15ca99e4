"""A discriminator: a small net learns to separate student and teacher, and the student learns to look the same.

Xu, Hsu, Huang, "Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with Conditional Adversarial
Networks", 2018 (arXiv:1709.00513); Wang et al., "KDGAN", 2018 (NeurIPS); Shen, He, Xue, "MEAL: Multi-Model Ensemble via
Adversarial Learning", 2019 (arXiv:1812.02425).

Both train in one optimizer through a gradient reversal layer (Ganin, Lempitsky, "Unsupervised Domain Adaptation by
Backpropagation", 2015, arXiv:1409.7495): it passes the student's signal through unchanged, and reverses the sign of its gradient.

Pitfalls:

- It matches distributions, not items, so it does not teach which item has which signal. Add it to another technique:
  distill soft --also discriminator.
- A discriminator that is always right gives almost no gradient; a lower --reversal, or --weight-warmup, avoids this.
- The discriminator could separate signals by their scale alone, so features are normalised first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkit import Task, Term, param
from kdkit.tasks import Classification, at_least_float32
from kdkit_distill.feature.stage import LayerStage
from kdkit_distill.layers.pooling import vectors
from kdkit_distill.layers.projections import width_of
from kdkit_distill.signals import Pair, Signal, SignalPair

if TYPE_CHECKING:
    from kdkit import Context


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor, strength: float) -> Tensor:
        context.strength = strength
        return values.view_as(values)

    @staticmethod
    def backward(context: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        return -context.strength * slopes[0], None


def reversed_gradient(values: Tensor, strength: float = 1.0) -> Tensor:
    """The values unchanged; their gradient is multiplied by -strength.

    >>> x = torch.ones(1, requires_grad=True)
    >>> reversed_gradient(3 * x, 0.5).backward()
    >>> x.grad
    tensor([-1.5000])
    """
    return _Reversal.apply(values, strength)


def separation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The discriminator's loss: (-log(1 - sigmoid(student)) - log sigmoid(teacher)) / 2.

    Args:
        student: its score, before a sigmoid, that the student's signal is the teacher's: any shape.
        teacher: its score for the teacher's signal, of the same shape.

    Returns:
        The same shape, at least float32; log 2 if it can only guess.

    >>> separation_loss(torch.zeros(1), torch.zeros(1)).exp()
    tensor([2.])
    """
    return (F.softplus(at_least_float32(student)) + F.softplus(-at_least_float32(teacher))) / 2


class Discriminator(LayerStage):
    """Learn signals that a small discriminator net can't distinguish from the teacher's.

    Loss per item: [-log(1 - D(s)) - log D(t)] / 2, where D learns to decrease it; a gradient reversal layer before D lets the
    student learn to increase it, with factor --reversal. At log 2 = 0.693 D can't separate them.

    s and t are features (--signal features: the last layers unless --layers names others, pooled over places and tokens) or logits.
    The figure discriminator_accuracy is D's accuracy, shown live and in the notes: 1 at first, and 0.5 if it can only guess.
    """

    id: ClassVar[str] = "distill.discriminator"
    known_as: ClassVar[tuple[str, ...]] = ("KDGAN", "MEAL")

    signal: Literal["features", "logits"] = param("features", "what the discriminator looks at", main=True)
    alpha: float = param(0.5, "share of the teacher in the loss; the rest is the labels'", ge=0, le=1, search=(0.1, 0.9))
    match: Literal["uniform", "last"] = param("last", "which layers are chosen: spread over both nets, or the last ones")
    count: int | None = param(1, "number of chosen pairs of layers", ge=1)
    hidden: int = param(64, "width of the discriminator", ge=1)
    reversal: float = param(1.0, "factor of the student's gradient against the discriminator", gt=0, search=(0.1, 1.0))

    def looks_inside(self) -> bool:
        return self.signal == "features"

    def pairs(self, student: nn.Module, teacher: nn.Module | None, context: Context) -> tuple[Pair, ...]:
        return super().pairs(student, teacher, context) if self.signal == "features" else ()

    def incompatible_task(self, task: Task) -> str:
        classes = isinstance(task, Classification)
        return "" if self.signal == "features" or classes else "with --signal logits it needs classes; --signal features works for any task"

    def incompatible_signals(self, student: Signal, teacher: Signal) -> str:
        if self.signal == "features" or student.logits.shape == teacher.dense.shape:
            return ""
        return (
            f"the student's logits have shape {tuple(student.logits.shape)} and the teacher's {tuple(teacher.dense.shape)}; --signal features works with different sizes"
        )

    def extra_modules(self, student: Signal, teacher: Signal, pairs: tuple[Pair, ...], context: Context) -> nn.ModuleDict:
        if self.signal == "logits":
            return nn.ModuleDict({"logits": SignalDiscriminator(student.logits.shape[-1], teacher.dense.shape[-1], self.hidden)})
        sizes = [(width_of(student.features[pair.student].shape), width_of(teacher.features[pair.teacher].shape)) for pair in pairs]
        return nn.ModuleDict({str(number): SignalDiscriminator(*each, self.hidden) for number, each in enumerate(sizes)})

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        signals = seen.features() if self.signal == "features" else [("logits", seen.student.logits, seen.teacher.dense)]
        for key, student, teacher in signals:
            if self.signal == "features":
                student, teacher = vectors(student, seen.step.batch), vectors(teacher, seen.step.batch)
            scores = seen.modules[key](reversed_gradient(at_least_float32(student), self.reversal), at_least_float32(teacher))
            suffix = f" {seen.pairs[int(key)]}" if len(seen.pairs) > 1 else ""
            yield Term(f"discriminator{suffix}", separation_loss(*scores))
            right = [(score > 0) == truth for score, truth in zip(scores, (False, True), strict=True)]
            # a figure, not a loss: it appears in the curve and in the notes
            yield Term(f"discriminator_accuracy{suffix}", (right[0].float() + right[1].float()) / 2, weight=0.0)


class SignalDiscriminator(nn.Module):
    """The discriminator: scores how likely a signal is the teacher's; the student's signal is mapped to the teacher's size first.

    >>> own, teachers = SignalDiscriminator(3, 5, hidden=8)(torch.zeros(2, 3), torch.ones(2, 5))
    >>> own.shape, teachers.shape
    (torch.Size([2]), torch.Size([2]))
    """

    def __init__(self, student: int, teacher: int, hidden: int):
        super().__init__()
        self.bridge = nn.Linear(student, teacher) if student != teacher else nn.Identity()
        self.scores = nn.Sequential(nn.LayerNorm(teacher, elementwise_affine=False), nn.Linear(teacher, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1))

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """(..., size) of each -> their scores, (...)."""
        weights = next(self.scores.parameters()).dtype
        return self.scores(self.bridge(student.to(weights))).squeeze(-1), self.scores(teacher.to(weights)).squeeze(-1)
