"""Divergences: how far a student's answers are from its teacher's, one value an item, never reduced.

All take logits (..., classes), compute in float32 at least, and hold T² where it belongs: with it the gradient stays
comparable to that of the label loss as T grows, and the mean over a batch is what papers call batchmean (Hinton, Vinyals
and Dean, 2015, arXiv:1503.02531). Where the teacher kept its most probable classes only (`TopK`), the distributions have one
event for each of these and one for all others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdkit.tasks.contract import wide
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
    said, asked = events(student, teacher, temperature)
    return temperature**2 * kullback_leibler(asked, said)


def reverse(student: Tensor, teacher: Tensor | TopK, temperature: float = 1.0) -> Tensor:
    """T² · KL(softmax(student / T) ‖ softmax(teacher / T)): the student need not cover all that the teacher thinks possible.

    A class that the teacher alone rules out (-inf) costs infinitely much. Arguments and result as in `soft_labels`.

    >>> reverse(torch.zeros(2, 3), torch.zeros(2, 3), 4.0)
    tensor([0., 0.])
    """
    said, asked = events(student, teacher, temperature)
    return temperature**2 * kullback_leibler(said, asked)


def jensen_shannon(student: Tensor, teacher: Tensor | TopK, temperature: float = 1.0, balance: float = 0.5) -> Tensor:
    """T² · (b · KL(teacher ‖ m) + (1 - b) · KL(student ‖ m)), m = b · teacher + (1 - b) · student: bounded by T² · log 2.

    The generalized divergence of Agarwal et al., 2024 (arXiv:2306.13649). Its gradient shrinks with b · (1 - b) towards both
    ends, where it does not go over into the forward and the reverse one.

    Args:
        balance: b, above 0 and below 1; the rest and the result as in `soft_labels`.

    >>> jensen_shannon(torch.tensor([[99.0, 0.0]]), torch.tensor([[0.0, 99.0]]))
    tensor([0.6931])
    """
    said, asked = events(student, teacher, temperature)
    # what both rule out has no mixture, and no gradient: logaddexp of -inf and -inf would have nan
    there = (said > -math.inf) | (asked > -math.inf)
    mixed = torch.logaddexp(asked.where(there, 0.0) + math.log(balance), said + math.log1p(-balance))
    return temperature**2 * (balance * kullback_leibler(asked, mixed) + (1 - balance) * kullback_leibler(said, mixed))


def squared(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """The mean over the classes of (student / T - teacher / T)², as TextBrewer's `kd_mse_loss` has it: without T².

    Args:
        student, teacher: (..., classes) logits, or vectors, or numbers. A class that the teacher rules out (-inf) costs
            nothing.

    Returns:
        (...), at least 0.

    >>> squared(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]]))
    tensor([2.])
    """
    said, asked = _allowed(student, teacher)
    return ((said - asked) / temperature).square().mean(-1)


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - the cosine between student and teacher: blind to the length of the vectors, so T would cancel out.

    A vector of length 0 points nowhere: the value is 1, without a gradient. Arguments and result as in `squared`; 0 to 2.

    >>> cosine_distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    tensor([1.])
    """
    said, asked = _allowed(student, teacher)
    return 1 - (unit(said) * unit(asked)).sum(-1)


def kullback_leibler(of: Tensor, to: Tensor) -> Tensor:
    """KL of one distribution to another, both given as log-probabilities (..., events) -> (...).

    What the first rules out costs nothing, also where the second rules it out. Either may have a graph.

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
    >>> said, asked = events(logits, top_k(logits, 2), 1.0)
    >>> asked.exp()
    tensor([[0.8438, 0.1142, 0.0420]])
    >>> torch.allclose(said, asked)
    True
    """
    scaled = wide(student) / temperature
    if not isinstance(teacher, TopK):
        return torch.log_softmax(scaled, -1), torch.log_softmax(wide(teacher).to(scaled.dtype) / temperature, -1)
    places, asked = teacher.indices.long(), wide(teacher.values).to(scaled.dtype)
    kept = torch.log_softmax(scaled, -1).gather(-1, places)
    if asked.shape[-1] < teacher.classes:
        lowest = torch.finfo(scaled.dtype).min  # and not -inf, of which the gradient would be nan where nothing else is left
        # the others' mass as their own sum: 1 - the sum of what was kept would lose it in rounding
        others = scaled.scatter(-1, places, lowest).logsumexp(-1) - scaled.logsumexp(-1)
        kept, asked = torch.cat([kept, others[..., None]], -1), torch.cat([asked, wide(teacher.tail).to(asked)[..., None]], -1)
    # what was stored in half precision no longer sums to 1
    return kept, torch.log_softmax(asked, -1)


def _allowed(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both as they are, at least float32, and 0 in both where the teacher rules a class out."""
    said, asked = wide_pair(student, teacher)
    ruled_out = asked == -math.inf
    return said.masked_fill(ruled_out, 0.0), asked.masked_fill(ruled_out, 0.0)
