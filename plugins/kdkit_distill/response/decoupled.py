"""Decoupled distillation (DKD): how sure the teacher is, and what it thinks of the other classes, weighted apart.

Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022 (arXiv:2203.08679). With y the label,
p = softmax(z / T) and r the softmax over all classes but y, plain distillation is

    KL(p_t ‖ p_s) = KL((p_t[y], 1 - p_t[y]) ‖ (p_s[y], 1 - p_s[y])) + (1 - p_t[y]) · KL(r_t ‖ r_s)
                  = target term                                     + (1 - p_t[y]) · other term

so a sure teacher hides what it knows of the other classes. Here both terms stand alone:

    loss per item = T² · (target weight · target term + other weight · other term)

The defaults are the paper's for CIFAR-100: 1 and 8 at T = 4, beside the label loss with equal weight (alpha 0.5). It lets
the terms rise over the first epochs (20 of 240: --weight-warmup 0.08). Good other weights grow with the teacher's
sureness, 0.5 to 8.

Pitfalls: it needs labels; items without one (-100) do not count. With two classes the other term is constant. A large
other weight is a large step: lower the learning rate, or warm up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from kdkit.contract import Needs, param
from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.tasks import Task
from kdkit.tasks.contract import IGNORED
from kdkit.training import Term
from kdkit_distill.precision import wide_pair
from kdkit_distill.response.divergences import kullback_leibler
from kdkit_distill.response.stage import ResponseStage
from kdkit_distill.signals import Exchange, Signal


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The target and the other term, each times T².

    All in log space, the label's class left out by removal: sure models give finite values and gradients.

    Args:
        student, teacher: logits (..., classes); computed in float32 at least.
        labels: (...) int64, the class of each; -100 where there is none.
        temperature: T, above 0.

    Returns:
        two of (...), at least 0; 0 where there is no label.

    >>> target, other = decoupled(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[9.0, 1.0, 0.0]]), torch.tensor([0]))
    >>> target > 0.3, other
    (tensor([True]), tensor([0.]))
    """
    there = labels != IGNORED
    chosen = labels.where(there, 0)[..., None]
    (said, said_of_others), (asked, asked_of_others) = (_parted(logits / temperature, chosen) for logits in wide_pair(student, teacher))
    target, other = kullback_leibler(asked, said), kullback_leibler(asked_of_others, said_of_others)
    return temperature**2 * target.where(there, 0.0), temperature**2 * other.where(there, 0.0)


def _parted(logits: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (the chosen class, all others), and of each other class among the others."""
    others = logits.scatter(-1, chosen, -math.inf)
    whole, rest = logits.logsumexp(-1, keepdim=True), others.logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(-1, chosen), rest], -1) - whole, others - rest


def class_labels(task: Task, batch: Batch, logits: Tensor) -> Tensor:
    """The label of each item or token as a class number, int64, of the logits' shape without the classes; -100 where there is none.

    Raises:
        KdError: the labels are no class numbers, or beyond the classes.
    """
    labels = task.labels(batch).to(logits.device)
    if labels.numel() != logits.shape[:-1].numel():
        raise KdError(
            f"labels of shape {tuple(labels.shape)} do not name one class for each of {tuple(logits.shape[:-1])}",
            "the label's class is told from the others: give class numbers; with probabilities for labels take distill soft",
        )
    labels = labels.reshape(logits.shape[:-1]).long()
    beyond = (labels >= logits.shape[-1]) | ((labels < 0) & (labels != IGNORED))
    if beyond.any():
        raise KdError(f"a label is {int(labels[beyond][0])}, and there are {logits.shape[-1]} classes", f"classes are numbered from 0; {IGNORED} is left out")
    return labels


class Decoupled(ResponseStage):
    """Weight what the teacher says of the label's class and of all others apart (DKD).

    Loss per item, or token: (1 - alpha) · label loss + alpha · T² · (target weight · KL of the label's class against the
    rest + other weight · KL over the other classes among themselves). Needs labels, and three classes.
    """

    id: ClassVar[str] = "distill.decoupled"

    alpha: float = param(0.5, "share of the teacher in the loss; the rest is the labels'", ge=0, le=1, search=(0.3, 1.0))
    target_weight: float = param(1.0, "factor of the term about the label's class", ge=0, search=(0.5, 2))
    other_weight: float = param(8.0, "factor of the term about the other classes", ge=0, search=(0.5, 8))

    def needed(self) -> Needs:
        return super().needed() | Needs(labels=True)

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if not self.labels:
            yield "--no-labels: it tells the label's class from the others, so it can't do without labels; --alpha 1 leaves out only the label loss"
        if self.target_weight == 0 == self.other_weight:
            yield "--target-weight and --other-weight are both 0, so nothing would be learnt from the teacher"

    def unfit(self, student: Signal, teacher: Signal) -> str:
        if student.logits.shape[-1] > 2 or not self.other_weight:
            return ""
        return "with two classes the second term is constant: there is one other class only; distill soft is the first term, or say --other-weight 0"

    def terms(self, seen: Exchange) -> Iterable[Term]:
        student, step = seen.student.logits, seen.step
        labels = class_labels(step.task, step.batch, student)
        target, other = decoupled(student, seen.teacher.dense, labels, self.temperature_at(step.progress))
        # as the label loss does, they count where there is a label
        for name, values, weight in (("target", target, self.target_weight), ("other", other, self.other_weight)):
            if weight:
                yield Term(name, values, weight, labels=True)
