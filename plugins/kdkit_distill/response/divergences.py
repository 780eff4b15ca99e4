"""Divergences between a student's and a teacher's logits: one value for each item, without reduction.

All take logits (..., classes), and compute in float32 at least. A factor T² keeps the gradient comparable to that of the label
loss as T grows, and the mean over a batch is the batchmean of papers (Hinton, Vinyals and Dean, 2015, arXiv:1503.02531). If
only the teacher's most probable classes are available (`TopK`), the distributions have one event for each of these and one for
all others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdkit.tasks import at_least_float32
from kdkit_distill.precision import wide_pair
from kdkit_distill.relation.geometry import unit
from kdkit_distill.signals import TopK


def soft_labels(student: Tensor, teacher: Tensor | TopK, temperature: float = 1.0) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)) over the last dimension: the forward divergence.

    Args:
        student: logits (..., classes); computed in float32 at least.
        teacher: logits of the same shape, -inf rules a class out; or the most probable classes at the same temperature.
        temperature: T, above 0.

    Returns:
        (...), at least 0.

    >>> soft_labels(torch.zeros(2, 3), torch.zeros(2, 3), 4.0)
    tensor([0., 0.])
    """
    predicted, expected = events(student, teacher, temperature)
    return temperature**2 * kullback_leibler(expected, predicted)


def reverse(student: Tensor, teacher: Tensor | TopK, temperature: float = 1.0) -> Tensor:
    """T² · KL(softmax(student / T) ‖ softmax(teacher / T)): the student need not cover all that the teacher thinks possible.

    The value is infinite if only the teacher rules a class out (-inf). Arguments and result as in `soft_labels`.

    >>> reverse(torch.zeros(2, 3), torch.zeros(2, 3), 4.0)
    tensor([0., 0.])
    """
    predicted, expected = events(student, teacher, temperature)
    return temperature**2 * kullback_leibler(predicted, expected)


def jensen_shannon(student: Tensor, teacher: Tensor | TopK, temperature: float = 1.0, balance: float = 0.5) -> Tensor:
    """T² · (b · KL(teacher ‖ m) + (1 - b) · KL(student ‖ m)), m = b · teacher + (1 - b) · student: bounded by T² · log 2.

    The generalized divergence of Agarwal et al., 2024 (arXiv:2306.13649). Its gradient shrinks with b · (1 - b) towards b = 0
    and b = 1, so these limits are not the forward and the reverse divergence.

    Args:
        balance: b, above 0 and below 1; other arguments and the result as in `soft_labels`.

    >>> jensen_shannon(torch.tensor([[99.0, 0.0]]), torch.tensor([[0.0, 99.0]]))
    tensor([0.6931])
    """
    predicted, expected = events(student, teacher, temperature)
    # a class that both rule out: the gradient of logaddexp of -inf and -inf would be nan
    there = (predicted > -math.inf) | (expected > -math.inf)
    mixed = torch.logaddexp(expected.where(there, 0.0) + math.log(balance), predicted + math.log1p(-balance))
    return temperature**2 * (balance * kullback_leibler(expected, mixed) + (1 - balance) * kullback_leibler(predicted, mixed))


def squared(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """The mean over the classes of (student / T - teacher / T)², as in TextBrewer's `kd_mse_loss`: without T².

    Args:
        student, teacher: (..., classes) logits, or vectors, or numbers. Classes that the teacher rules out (-inf) are
            ignored.

    Returns:
        (...), at least 0.

    >>> squared(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]]))
    tensor([2.])
    """
    predicted, expected = _allowed(student, teacher)
    return ((predicted - expected) / temperature).square().mean(-1)


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - the cosine between student and teacher: the length of the vectors does not matter, so T would cancel out.

    For a vector of length 0 the value is 1, without a gradient. Arguments and result as in `squared`; 0 to 2.

    >>> cosine_distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    tensor([1.])
    """
    predicted, expected = _allowed(student, teacher)
    return 1 - (unit(predicted) * unit(expected)).sum(-1)


def kullback_leibler(of: Tensor, to: Tensor) -> Tensor:
    """KL of one distribution to another, both given as log-probabilities (..., events) -> (...).

    Events that the first rules out add 0, even if the second rules them out. Either may require gradients.

    >>> kullback_leibler(torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.75, 0.0]).log())
    tensor(0.1438)
    """
    share = of.exp()
    there = share > 0
    return (share * (of.where(there, 0.0) - to.where(there, 0.0))).sum(-1)


def events(student: Tensor, teacher: Tensor | TopK, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of student and teacher over the same events: the classes, or the teacher's most probable ones and the rest.

    Returns:
        two of (..., events).

    >>> from kdkit_distill.signals import top_k
    >>> logits = torch.tensor([[3.0, 1.0, 0.0]])
    >>> predicted, expected = events(logits, top_k(logits, 2), 1.0)
    >>> expected.exp()
    tensor([[0.8438, 0.1142, 0.0420]])
    >>> torch.allclose(predicted, expected)
    True
    """
    scaled = at_least_float32(student) / temperature
    if not isinstance(teacher, TopK):
        return torch.log_softmax(scaled, -1), torch.log_softmax(at_least_float32(teacher).to(scaled.dtype) / temperature, -1)
    places, expected = teacher.indices.long(), at_least_float32(teacher.values).to(scaled.dtype)
    kept = torch.log_softmax(scaled, -1).gather(-1, places)
    if expected.shape[-1] < teacher.classes:
        lowest = torch.finfo(scaled.dtype).min  # not -inf, whose gradient would be nan if nothing else is left
        # sum the mass of the others directly: 1 - the kept mass would lose it in rounding
        others = scaled.scatter(-1, places, lowest).logsumexp(-1) - scaled.logsumexp(-1)
        kept, expected = torch.cat([kept, others[..., None]], -1), torch.cat([expected, at_least_float32(teacher.tail).to(expected)[..., None]], -1)
    # probabilities stored in half precision no longer sum to 1
    return kept, torch.log_softmax(expected, -1)


def _allowed(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 at least, with 0 in both where the teacher rules a class out."""
    predicted, expected = wide_pair(student, teacher)
    ruled_out = expected == -math.inf
    return predicted.masked_fill(ruled_out, 0.0), expected.masked_fill(ruled_out, 0.0)
