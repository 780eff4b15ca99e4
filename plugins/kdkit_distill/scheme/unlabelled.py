"""Unlabelled distillation: the teacher is all there is to learn from.

What `soft --no-labels` does, under a name that says so: labels are neither asked for nor looked at, so any inputs will do
that are like those the student shall work on. A hundred labels and a thousand unlabelled images, taught by a good teacher,
beat the hundred labels alone by far: Bucila, Caruana, Niculescu-Mizil, "Model Compression", KDD 2006.

Pitfalls: the student learns the teacher's mistakes too, and on inputs unlike its training data a teacher is sure and wrong.
"""

from __future__ import annotations

from typing import ClassVar

from kdkit_distill.response.soft import Soft


class Unlabelled(Soft):
    """Learn from the teacher's answers alone, on data without labels.

    Loss per item, or token: T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)), or another --divergence as in distill soft.
    """

    id: ClassVar[str] = "distill.unlabelled"
    sample_options: ClassVar[str] = "--control {labelled}"

    # facts of this technique, and so no options of it
    alpha: ClassVar[float] = 1.0  # type: ignore[misc]
    labels: ClassVar[bool] = False  # type: ignore[misc]
