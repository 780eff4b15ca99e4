"""Heads: check that student and teacher predict the same classes, and cut the padding of a vocabulary."""

from __future__ import annotations

from dataclasses import replace

from kdkit import KdError, Task
from kdkit.tasks import CausalLM, Classification, Detection
from kdkit_distill.signals import Signal, first_classes

PADDING = 1024
"""The largest difference in rows that counts as padding of one vocabulary; a larger one means another vocabulary."""


def same_classes(student: Signal, teacher: Signal, task: Task, *hints: str) -> tuple[Signal, Signal]:
    """Both signals over the same classes; if one head has a padded vocabulary, the padding is cut off.

    Places of detections that are sets may differ in number.

    Args:
        hints: added to the error message.

    Raises:
        KdError: their classes, or the shapes of their outputs, differ.

    >>> import torch
    >>> predicted, expected = same_classes(Signal(torch.zeros(2, 5, 32)), Signal(torch.zeros(2, 5, 40)), CausalLM())
    >>> predicted.logits.shape == expected.logits.shape
    True
    """
    one, two = student.logits.shape, teacher.logits.shape
    if one == two or (isinstance(task, Detection) and task.sets and (one[0], one[2:]) == (two[0], two[2:])):
        return student, teacher
    if one[:-1] != two[:-1]:
        raise KdError(
            f"the teacher's output has shape {tuple(two)}, the student's {tuple(one)}",
            "both outputs need one shape; check pooling, strides and tokenizers",
            *hints,
        )
    if not isinstance(task, Classification):
        raise KdError(
            f"the teacher outputs {two[-1]} numbers for each item, the student {one[-1]}",
            "give the student an output of that width, or compare layers: %kd list distill",
            *hints,
        )
    if not isinstance(task, CausalLM) or abs(one[-1] - two[-1]) > PADDING:
        raise KdError(
            f"the teacher has {two[-1]} classes, the student {one[-1]}",
            "both need the same classes in the same order; give the student a head of that width",
            *hints,
        )
    classes = min(one[-1], two[-1])
    return replace(student, logits=first_classes(student.logits, classes)), replace(teacher, logits=first_classes(teacher.logits, classes))
