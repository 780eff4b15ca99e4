"""Precision: objectives compute in float32 at least, also under autocast, in whatever precision the models run."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from kdkit.tasks import at_least_float32


def wide_pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the student's precision, at least float32.

    >>> [each.dtype for each in wide_pair(torch.zeros(1, dtype=torch.half), torch.zeros(1, dtype=torch.double))]
    [torch.float32, torch.float32]
    """
    student = at_least_float32(student)
    return student, at_least_float32(teacher).to(student.dtype)


def full_precision(objective: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Disable autocast within an objective: a Gram matrix in bfloat16 keeps only three digits.

    >>> @full_precision
    ... def product(one, two):
    ...     return one @ two
    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     product(torch.ones(1, 1), torch.ones(1, 1)).dtype
    torch.float32
    """

    @functools.wraps(objective)
    def computed(first: Tensor, *others: object, **options: object) -> Tensor:
        with torch.autocast(first.device.type, enabled=False):
            return objective(first, *others, **options)

    return computed
