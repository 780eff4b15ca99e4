"""Unlabelled distillation: the student learns only from the teacher.

The same as `soft --no-labels`, under its own name: labels are neither required nor used, so any inputs work that are similar
to those the student is used on. A hundred labels and a thousand unlabelled images with a good teacher are far better than the
hundred labels alone: Bucila, Caruana, Niculescu-Mizil, "Model Compression", KDD 2006.

Pitfalls: the student also learns the teacher's mistakes, and on inputs unlike its training data a teacher is often confident and wrong.
"""

from __future__ import annotations

from typing import ClassVar

from kdkit_distill.response.soft import Soft


class Unlabelled(Soft):
    """Learn only from the teacher's predictions, on data without labels.

    Loss per item, or token: T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)), or another --divergence as in distill soft.
    """

    id: ClassVar[str] = "distill.unlabelled"
    known_as: ClassVar[tuple[str, ...]] = ("unlabeled",)

    # constants of this technique, not options
    alpha: ClassVar[float] = 1.0  # type: ignore[misc]
    labels: ClassVar[bool] = False  # type: ignore[misc]
