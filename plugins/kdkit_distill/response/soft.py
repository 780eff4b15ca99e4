"""Soft labels: the student learns the teacher's whole distribution, not only its first choice.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv:1503.02531).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from kdkit.training import Term
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.response.stage import ResponseStage
from kdkit_distill.signals import Exchange


class Soft(ResponseStage):
    """Match the teacher's softened class probabilities.

    Loss per item, or token: (1 - alpha) · label loss + alpha · T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)). T² keeps the
    second term's gradient comparable to the first's as T grows.
    """

    id: ClassVar[str] = "distill.soft"

    def terms(self, seen: Exchange) -> Iterable[Term]:
        yield Term("soft", soft_labels(seen.student.logits, seen.teacher.logits, self.temperature_at(seen.step.progress)))
