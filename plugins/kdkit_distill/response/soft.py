"""Soft labels: the student learns the teacher's whole distribution, not only its first choice.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv:1503.02531); the other divergences:
Agarwal et al., "On-Policy Distillation of Language Models", 2024 (arXiv:2306.13649). With z the logits, p = softmax(z / T)
and b the balance, the loss per item or token is

    forward         T² · KL(p_t ‖ p_s)                                              the student covers all of the teacher's classes
    reverse         T² · KL(p_s ‖ p_t)                                              it keeps to the classes likely for the teacher
    jensen-shannon  T² · (b · KL(p_t ‖ m) + (1 - b) · KL(p_s ‖ m)), m = b · p_t + (1 - b) · p_s            bounded; between the two
    mse             mean over the classes of (z_s / T - z_t / T)²                   as in TextBrewer: without T² (--temperature 1)
    cosine          1 - cos(z_s, z_t)                                               T cancels out

The last two also compare vectors and numbers (embeddings, regressions), which have no temperature: T is 1 there. Where each
label is decided on its own (multilabel), the first three compare the two probabilities of each label, σ(z / T) and 1 - σ(z / T),
and the loss is the mean over the labels. Detections are compared as `kdkit_distill.response.detections` states. The default
divergence is forward for classes and labels, mse for numbers, cosine for vectors.

The published T of 4 belongs to trainings to the end. In short ones (200 steps with adamw, validation data) it lost 4 to 8 points of
accuracy on spoken digits and T = 1 -1.8 to +0.5; on Fashion-MNIST T = 4 gained most after 600 steps. So T is 1 by default.

Pitfalls: alpha and T² change the size of the step under SGD, so tune the learning rate again before crediting the teacher.
As T grows, forward approaches half the mean squared distance of the centred logits. Reverse is infinite if the teacher
rules out a class that the student does not. With many classes, --top-k keeps the most probable ones and one event for all
others: with k = 64 of 32,000 and .80 of the mass, the gradient is within 2 % of the exact one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kdkit import KdError, Task, Term, param
from kdkit.tasks import Classification, Detection
from kdkit_distill.response.detections import distance_of_places, distance_of_sets
from kdkit_distill.response.divergences import cosine_distance, jensen_shannon, reverse, soft_labels, squared
from kdkit_distill.response.stage import ResponseStage
from kdkit_distill.signals import Signal, SignalPair, TopK, top_k


class Soft(ResponseStage):
    """Match the teacher's softened class probabilities (KD).

    Loss per item, or token: (1 - alpha) · label loss + alpha · T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)). T² keeps the
    second term's gradient comparable to the first's as T grows. --divergence selects another comparison; mse and
    cosine also compare vectors and numbers.
    """

    id: ClassVar[str] = "distill.soft"
    known_as: ClassVar[tuple[str, ...]] = ("KD", "knowledge distillation", "logit distillation", "soft labels", "soft targets")

    temperature: float = param(
        1.0, "softens both distributions; 1: no softening, for short trainings; 4, as often published, for long ones", gt=0, search=(1, 8), main=True
    )
    divergence: Literal["forward", "reverse", "jensen-shannon", "mse", "cosine"] | None = param(
        None,
        "how student and teacher are compared: a divergence of probabilities, or mse or cosine of logits, vectors or numbers; "
        "default: forward for classes and labels, mse for numbers, cosine for vectors",
    )
    balance: float = param(0.5, "jensen-shannon: share of the teacher in the mixture", gt=0, lt=1, advanced=True)
    top_k: int | None = param(None, "compare this many of the teacher's most probable classes, and all others as one; default: all", ge=1, advanced=True)

    @property
    def of_probabilities(self) -> bool:
        """Whether probabilities are compared, not raw outputs, in a task that predicts classes."""
        return self.divergence not in ("mse", "cosine")

    def divergence_for(self, task: Task) -> str:
        """--divergence, or the default for a task.

        >>> from kdkit.tasks import Embedding, MultiLabel, Regression
        >>> [Soft().divergence_for(task) for task in (Classification(), MultiLabel(), Regression(), Embedding())]
        ['forward', 'forward', 'mse', 'cosine']
        """
        return self.divergence or {"numbers": "mse", "vectors": "cosine"}.get(task.predicts, "forward")

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.top_k is None:
            return
        if not self.of_probabilities:
            yield f"--top-k needs probabilities, but --divergence {self.divergence} compares all logits; leave out one of them"
        if self.temperature_schedule != "constant":
            yield "--top-k keeps probabilities of one temperature, so it can't follow --temperature-schedule; leave out one of them"

    def incompatible_task(self, task: Task) -> str:
        if task.predicts == "labels" and self.top_k is not None:
            return "--top-k keeps the most probable of several classes, and here each label is decided on its own; leave it out"
        if task.predicts == "boxes" and self.divergence_for(task) != "forward":
            return f"--divergence {self.divergence} compares one answer for each item, and a detector has a class and a box at each place; leave it out"
        if self.divergence_for(task) in ("mse", "cosine") or task.predicts in ("labels", "boxes"):
            return ""
        reason = super().incompatible_task(task).partition(";")[0]
        return reason and f"{reason}; --divergence mse or cosine compares vectors and numbers"

    def incompatible_signals(self, student: Signal, teacher: Signal) -> str:
        if self.divergence == "cosine" and student.logits.shape[-1] == 1:
            return "the cosine of two single numbers is only their sign; use --divergence mse"
        return ""

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        task = seen.step.task
        softened = isinstance(task, Classification) or (task.predicts in ("labels", "boxes") and self.of_probabilities)
        temperature = self.temperature_at(seen.step.progress) if softened else 1.0
        yield Term("soft", self.compared(seen.student.logits, seen.teacher, temperature, task))

    def compared(self, student: Tensor, teacher: Signal, temperature: float, task: Task) -> Tensor:
        """The distance between student and teacher: logits (..., classes) and a signal -> (...)."""
        divergence = self.divergence_for(task)
        if isinstance(task, Detection):
            return (distance_of_sets if task.sets else distance_of_places)(student, teacher.dense, temperature, task)
        if divergence == "mse":
            return squared(student, teacher.dense, temperature)
        if divergence == "cosine":
            return cosine_distance(student, teacher.dense)
        separate = task.predicts == "labels"
        if separate:
            student = two_outcomes(student)
        asked = two_outcomes(teacher.dense) if separate else self._kept(teacher.logits, temperature)
        if divergence == "jensen-shannon":
            apart = jensen_shannon(student, asked, temperature, self.balance)
        else:
            apart = (reverse if divergence == "reverse" else soft_labels)(student, asked, temperature)
        return apart.mean(-1) if separate else apart

    def _kept(self, answers: Tensor | TopK, temperature: float) -> Tensor | TopK:
        """The teacher's logits to compare: all classes, or the most probable ones."""
        if not isinstance(answers, TopK):
            return answers if self.top_k is None else top_k(answers, self.top_k, temperature)
        if answers.temperature != temperature:
            raise KdError(
                f"the teacher's cached output has temperature {answers.temperature:g}, but the technique needs {temperature:g}",
                f"cache it again at that temperature, or use --temperature {answers.temperature:g} without a schedule",
            )
        return answers


def two_outcomes(logits: Tensor) -> Tensor:
    """The logits of no and yes for each label: (..., labels) -> (..., labels, 2), whose softmax is (1 - σ(z), σ(z)).

    >>> import torch
    >>> two_outcomes(torch.zeros(1, 3)).softmax(-1)[0, 0]
    tensor([0.5000, 0.5000])
    """
    return torch.stack([torch.zeros_like(logits), logits], -1)
