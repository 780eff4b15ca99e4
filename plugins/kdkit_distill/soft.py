"""Soft labels: the student learns the teacher's whole distribution, not only its first choice.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv:1503.02531).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from kdkit.contract import param
from kdkit.training import Term
from kdkit_distill.lesson import DistillStage, Signal
from kdkit_distill.objectives import soft_labels


class Soft(DistillStage):
    """Match the teacher's softened class probabilities.

    Loss per item, or token: (1 - alpha) · label loss + alpha · T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)). T² keeps the
    second term's gradient comparable to the first's as T grows.
    """

    id: ClassVar[str] = "distill.soft"

    temperature: float = param(4.0, "softens both distributions; 1 leaves them as they are", gt=0, search=(1, 8))

    def terms(self, student: Signal, teacher: Signal) -> Iterable[Term]:
        yield Term("soft", soft_labels(student.logits, teacher.logits, self.temperature))
