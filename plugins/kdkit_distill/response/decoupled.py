"""Decoupled distillation (DKD): separate weights for the label's class and for the distribution over the other classes.

Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022 (arXiv:2203.08679). With y the label,
p = softmax(z / T) and r the softmax over all classes but y, plain distillation is

    KL(p_t ‖ p_s) = KL((p_t[y], 1 - p_t[y]) ‖ (p_s[y], 1 - p_s[y])) + (1 - p_t[y]) · KL(r_t ‖ r_s)
                  = target term                                     + (1 - p_t[y]) · other term

so if the teacher is confident, its distribution over the other classes has little weight. Here the two terms are separate:

    loss per item = T² · (target weight · target term + other weight · other term)

The defaults are the paper's for CIFAR-100: 1 and 8 at T = 4, and the label loss with equal weight (alpha 0.5). The paper
raises the terms over the first epochs (20 of 240: --weight-warmup 0.08). The more confident the teacher, the larger a good
other weight, 0.5 to 8; so by default it is chosen such that both terms have gradients of one length, and --other-weight 8 is
the paper's.

Pitfalls: it needs labels; items without one (-100) do not count. With two classes the other term is constant. A large
other weight makes large steps: lower the learning rate, or use a warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from kdkit import Batch, KdError, Needs, Task, Term, param
from kdkit.tasks import CTC, IGNORED
from kdkit.training import Pull
from kdkit_distill.precision import wide_pair
from kdkit_distill.response.divergences import kullback_leibler
from kdkit_distill.response.stage import ResponseStage
from kdkit_distill.signals import Signal, SignalPair
from kdkit_distill.weighting import Weight

OTHER = 8.0
"""The published factor of the term about the other classes, for CIFAR-100."""


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The target and the other term, each times T².

    Computed in log space, with the label's class removed, so that confident models give finite values and gradients.

    Args:
        student, teacher: logits (..., classes); computed in float32 at least.
        labels: (...) int64, the class of each; -100 for no label.
        temperature: T, above 0.

    Returns:
        two of (...), at least 0; 0 without a label.

    >>> target, other = decoupled(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[9.0, 1.0, 0.0]]), torch.tensor([0]))
    >>> target > 0.3, other
    (tensor([True]), tensor([0.]))
    """
    there = labels != IGNORED
    chosen = labels.where(there, 0)[..., None]
    (predicted, predicted_of_others), (expected, expected_of_others) = (_parted(logits / temperature, chosen) for logits in wide_pair(student, teacher))
    target, other = kullback_leibler(expected, predicted), kullback_leibler(expected_of_others, predicted_of_others)
    return temperature**2 * target.where(there, 0.0), temperature**2 * other.where(there, 0.0)


def _parted(logits: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (the chosen class, all others), and of each other class among the others."""
    others = logits.scatter(-1, chosen, -math.inf)
    whole, rest = logits.logsumexp(-1, keepdim=True), others.logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(-1, chosen), rest], -1) - whole, others - rest


def class_labels(task: Task, batch: Batch, logits: Tensor) -> Tensor:
    """The label of each item or token as a class number, int64, of the logits' shape without the classes; -100 for no label.

    Raises:
        KdError: the labels are not class numbers, or out of range.
    """
    labels = task.labels(batch).to(logits.device)
    if labels.numel() != logits.shape[:-1].numel():
        raise KdError(
            f"labels of shape {tuple(labels.shape)} do not name one class for each of {tuple(logits.shape[:-1])}",
            "the technique needs class numbers; for probabilities as labels, use distill soft",
        )
    labels = labels.reshape(logits.shape[:-1]).long()
    beyond = (labels >= logits.shape[-1]) | ((labels < 0) & (labels != IGNORED))
    if beyond.any():
        raise KdError(f"a label is {int(labels[beyond][0])}, but there are {logits.shape[-1]} classes", f"classes are numbered from 0; {IGNORED} means no label")
    return labels


class Decoupled(ResponseStage):
    """Weight the teacher's probability of the label's class and its distribution over the others separately (DKD).

    Loss per item, or token: (1 - alpha) · label loss + alpha · T² · (target weight · KL of the label's class against the
    rest + other weight · KL over the other classes among themselves). Needs labels, and at least three classes.
    """

    id: ClassVar[str] = "distill.decoupled"
    known_as: ClassVar[tuple[str, ...]] = ("DKD",)

    alpha: float = param(0.5, "share of the teacher in the loss; the rest is the labels'", ge=0, le=1, search=(0.3, 1.0))
    target_weight: float = param(1.0, "factor of the term about the label's class", ge=0, search=(0.5, 2))
    other_weight: Weight = param(
        "auto",
        f"factor of the term about the other classes; auto: so that its gradient is as long as that of the first term; published: {OTHER:g}",
        ge=0,
        search=(0.5, 8),
    )

    @property
    def constant_other_weight(self) -> float:
        """The factor of the term about the other classes as a number: the published one, or the one that is given."""
        return OTHER if isinstance(self.other_weight, str) else self.other_weight

    def required_inputs(self) -> Needs:
        return super().required_inputs() | Needs(labels=True)

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if not self.labels:
            yield "--no-labels: it separates the label's class from the others, so it needs labels; --alpha 1 leaves out only the label loss"
        if self.target_weight == 0 == self.other_weight:
            yield "--target-weight and --other-weight are both 0, so nothing would be learned from the teacher"

    def incompatible_task(self, task: Task) -> str:
        if isinstance(task, CTC):
            return "it separates the true class of each frame from the others, and the labels of CTC belong to no frames; use distill soft"
        return super().incompatible_task(task)

    def incompatible_signals(self, student: Signal, teacher: Signal) -> str:
        if student.logits.shape[-1] > 2 or not self.other_weight:
            return ""
        return "with two classes the second term is constant: there is only one other class; use distill soft, or --other-weight 0"

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        student, step = seen.student.logits, seen.step
        labels = class_labels(step.task, step.batch, student)
        target, other = decoupled(student, seen.teacher.dense, labels, self.temperature_at(step.progress))
        # like the label loss, the terms count where there is a label
        for name, values, weight in (("target", target, self.target_weight), ("other", other, self.constant_other_weight)):
            if weight:
                pull = Pull("other", 1.0, "target", OTHER, "--other-weight") if name == "other" and self.other_weight == "auto" else None
                yield Term(name, values, weight, labels=True, pull=pull)
