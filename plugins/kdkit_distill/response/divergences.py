"""Objectives: how far a student is from its teacher, one value an item, never reduced."""

from __future__ import annotations

import torch
from torch import Tensor

from kdkit.tasks.contract import wide


def soft_labels(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)) over the last dimension.

    T² keeps the gradient comparable to that of the label loss as T grows; the mean over a batch is what papers call
    batchmean (Hinton, Vinyals and Dean, 2015, arXiv:1503.02531).

    Args:
        student: logits (..., classes); computed in float32 at least.
        teacher: logits of the same shape; -inf rules a class out.
        temperature: T, above 0.

    Returns:
        (...), at least 0.

    >>> soft_labels(torch.zeros(2, 3), torch.zeros(2, 3), 4.0)
    tensor([0., 0.])
    """
    said = torch.log_softmax(wide(student) / temperature, -1)
    asked = torch.log_softmax(wide(teacher).to(said.dtype) / temperature, -1)
    share = asked.exp()
    # a class the teacher rules out costs nothing, also where the student rules it out: 0 · (-inf + inf) would be nan
    return temperature**2 * torch.where(share > 0, share * (asked - said), 0.0).sum(-1)
