"""Heads: student and teacher answer in the same classes, or in one vocabulary that one of them has padded."""

from __future__ import annotations

from dataclasses import replace

from kdkit.errors import KdError
from kdkit.tasks import CausalLM, Classification, Task
from kdkit_distill.signals import Signal, first_classes

PADDING = 1024
"""Heads of one vocabulary may differ by so many rows that padding put there; more is another vocabulary."""


def same_classes(student: Signal, teacher: Signal, task: Task, *hints: str) -> tuple[Signal, Signal]:
    """Both signals in the same classes: the padding of the wider of two heads over one vocabulary is cut off.

    Args:
        hints: further ways out of what is wrong.

    Raises:
        KdError: they don't know the same classes, or don't say as much about each item.

    >>> import torch
    >>> said, asked = same_classes(Signal(torch.zeros(2, 5, 32)), Signal(torch.zeros(2, 5, 40)), CausalLM())
    >>> said.logits.shape == asked.logits.shape
    True
    """
    one, two = student.logits.shape, teacher.logits.shape
    if one == two:
        return student, teacher
    if one[:-1] != two[:-1]:
        raise KdError(
            f"the teacher's answers have shape {tuple(two)}, the student's {tuple(one)}",
            "both must say as much about each item; look at pooling, strides and tokenizers",
            *hints,
        )
    if not isinstance(task, Classification):
        raise KdError(
            f"the teacher gives {two[-1]} numbers an item, the student {one[-1]}", "give the student an output of that width, or compare layers: %kd list distill", *hints
        )
    if not isinstance(task, CausalLM) or abs(one[-1] - two[-1]) > PADDING:
        raise KdError(
            f"the teacher knows {two[-1]} classes, the student {one[-1]}",
            "the same classes in the same order are compared; give the student a head of that width",
            *hints,
        )
    classes = min(one[-1], two[-1])
    return replace(student, logits=first_classes(student.logits, classes)), replace(teacher, logits=first_classes(teacher.logits, classes))
