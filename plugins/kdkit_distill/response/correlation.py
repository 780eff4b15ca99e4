"""Correlation (DIST): the student matches the correlation of the teacher's probabilities, not their exact values.

Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022 (arXiv:2205.10536). With p the
matrix of softmax(z / T), one row for each item, and corr Pearson's correlation,

    inter = 1 - corr(p_s[i], p_t[i])            per item: the relations between the classes
    intra = 1 - mean over classes c of corr(p_s[:, c], p_t[:, c])            per batch: the relations between the items

    loss = T² · (inter weight · inter + intra weight · intra)

The defaults are the authors' for ImageNet: T = 1, both weights 1, and the label loss with equal weight (alpha 0.5); for
CIFAR-100 they used T = 4 and weights of 2.

Pitfalls: intra compares the items of a batch, so batches can't be accumulated, and small ones are noisy. A class whose
probability is the same for all items of the batch has no correlation: its loss is 1, without a gradient. Rare classes have
tiny columns, which the eps in the denominator damps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from kdkit import Term, param
from kdkit_distill.precision import wide_pair
from kdkit_distill.response.stage import ResponseStage
from kdkit_distill.signals import Signal, SignalPair

EPS = 1e-8
"""Added to the product of the two norms, as in the authors' code."""


def correlated(one: Tensor, two: Tensor) -> Tensor:
    """Pearson's correlation over the last dimension, two of (..., size) -> (...), -1 to 1; 0 without a gradient if one is constant.

    >>> correlated(torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]), torch.tensor([[5.0, 7.0, 9.0], [5.0, 7.0, 9.0]])).round(decimals=4)
    tensor([1., 0.])
    """
    centred = [each - each.mean(-1, keepdim=True) for each in (one, two)]
    norms = [each.norm(dim=-1) for each in centred]
    # constant up to rounding: for a constant column the gradient would be 1 / eps
    varies = [norm > 8 * torch.finfo(each.dtype).eps * each.norm(dim=-1) for norm, each in zip(norms, (one, two), strict=True)]
    found = (centred[0] * centred[1]).sum(-1) / (norms[0] * norms[1] + EPS)
    return found.where(varies[0] & varies[1], 0.0)


def inter_class(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · (1 - the correlation of both models' probabilities of each item).

    Args:
        student, teacher: logits (..., classes); computed in float32 at least.
        temperature: T, above 0.

    Returns:
        (...), 0 to 2 · T².

    >>> inter_class(torch.tensor([[4.0, 2.0, 0.0]]), torch.tensor([[4.0, 2.0, 0.0]])).abs() < 1e-6
    tensor([True])
    """
    predicted, expected = _shares(student, teacher, temperature)
    return temperature**2 * (1 - correlated(predicted, expected))


def intra_class(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · (1 - the mean over classes of the correlation over items), a scalar that depends on the whole batch.

    Args:
        student, teacher: logits (items, classes); computed in float32 at least.

    >>> same = torch.tensor([[4.0, 2.0, 0.0], [0.0, 3.0, 1.0]])
    >>> intra_class(same, same).abs() < 1e-5
    tensor(True)
    """
    predicted, expected = _shares(student, teacher, temperature)
    return temperature**2 * (1 - correlated(predicted.T, expected.T).mean())


def _shares(student: Tensor, teacher: Tensor, temperature: float) -> Iterator[Tensor]:
    return (torch.softmax(logits / temperature, -1) for logits in wide_pair(student, teacher))


class Correlation(ResponseStage):
    """Match how the teacher orders classes within an item, and items within a class (DIST).

    Loss: (1 - alpha) · label loss + alpha · T² · (inter weight · (1 - correlation over the classes of an item) + intra weight
    · (1 - correlation over the items of the batch, mean over the classes)). The second term has one value for the batch.
    """

    id: ClassVar[str] = "distill.correlation"
    known_as: ClassVar[tuple[str, ...]] = ("DIST",)
    relational: ClassVar[bool] = True

    alpha: float = param(0.5, "share of the teacher in the loss; the rest is the labels'", ge=0, le=1, search=(0.3, 1.0))
    temperature: float = param(1.0, "softens both distributions; 1: no softening", gt=0, search=(1, 8), main=True)
    inter_weight: float = param(1.0, "factor of the term over the classes of an item", ge=0, search=(0.5, 3))
    intra_weight: float = param(1.0, "factor of the term over the items of a class", ge=0, search=(0.5, 3))

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.inter_weight == 0 == self.intra_weight:
            yield "--inter-weight and --intra-weight are both 0, so the student would learn nothing from the teacher"

    def incompatible_signals(self, student: Signal, teacher: Signal) -> str:
        degenerate = self.inter_weight and student.logits.shape[-1] == 2
        return "with two classes the correlation over classes is always 1 or -1; leave that term out: --inter-weight 0" if degenerate else ""

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        student, teacher, temperature = seen.student.logits, seen.teacher.dense, self.temperature_at(seen.step.progress)
        if self.inter_weight:
            yield Term("inter", inter_class(student, teacher, temperature), self.inter_weight)
        if self.intra_weight:
            mask = seen.step.task.mask(seen.step.batch) if student.dim() > 2 else None
            rows = (student.flatten(0, -2), teacher.flatten(0, -2)) if mask is None else (student[mask], teacher[mask])
            # one number for the batch, split evenly over its counted items
            yield Term("intra", intra_class(*rows, temperature).expand(student.shape[:-1]), self.intra_weight)
