"""An ensemble: one student learns from several teachers of the same task.

You, Xu, Xu, Tao, "Learning from Multiple Teacher Networks", 2017; Hinton, Vinyals, Dean, 2015 (arXiv:1503.02531), section 3.
The note after the training tells the figures of each, of all together, and of the student.

Pitfalls: members that err on the same items are one teacher at the price of several. The gate trusts who is sure, and a badly
calibrated teacher is sure where it is wrong. All of them run at each step; --cache asks each once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdkit.contract import param
from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.table import number
from kdkit.tasks.contract import wide
from kdkit_distill.evaluation import figure, scored_data
from kdkit_distill.response.soft import Soft
from kdkit_distill.scheme.stage import SeveralTeachers, refuse
from kdkit_distill.signals import Signal
from kdkit_distill.sources import Panel, Several, Source

if TYPE_CHECKING:
    from kdkit.context import Context

Combine = Literal["mean", "weighted", "gated", "logits"]
Gate = Literal["entropy", "confidence"]

_LEAST = 1e-6
"""What the gate leaves to a teacher that knows nothing, so that all may."""


def mixture(logits: Tensor, temperature: float, shares: Tensor | None = None) -> Tensor:
    """T · log Σ_k w_k softmax(z_k / T): logits whose softmax at T is the mixture of the teachers' probabilities.

    Args:
        logits: (teachers, ..., classes); -inf rules a class out.
        temperature: T, above 0.
        shares: w, (teachers, ...), not negative, sums 1 over the teachers; equal when not said.

    Returns:
        (..., classes), float32 at least.

    >>> both = torch.tensor([[[0.0, 9.0]], [[9.0, 0.0]]])
    >>> mixture(both, 2.0).div(2.0).softmax(-1)
    tensor([[0.5000, 0.5000]])
    """
    said = torch.log_softmax(wide(logits) / temperature, -1)
    weights = said.new_full(said.shape[:-1], 1 / len(said)) if shares is None else shares.to(said.dtype)
    return temperature * torch.logsumexp(said + weights.log()[..., None], 0)


def gates(logits: Tensor, gate: Gate = "entropy") -> Tensor:
    """How far each teacher is trusted with an item: c_k / Σ_j c_j.

    c = 1 - H(p) / log(classes) for "entropy", 0 for a teacher that knows nothing and 1 for a sure one; c = max p for
    "confidence"; p = softmax(z) at temperature 1.

    Args:
        logits: (teachers, ..., classes).

    Returns:
        (teachers, ...), sums 1 over the teachers.

    >>> gates(torch.tensor([[[0.0, 0.0]], [[50.0, 0.0]]])).round(decimals=3)
    tensor([[0.],
            [1.]])
    """
    said = torch.log_softmax(wide(logits), -1)
    share = said.exp()
    if gate == "confidence":
        trust = share.amax(-1)
    else:
        entropy = -torch.where(share > 0, share * said, 0.0).sum(-1)
        trust = 1 - entropy / math.log(said.shape[-1])
    trust = trust.clamp_min(_LEAST)
    return trust / trust.sum(0)


class Combined(Several):
    """The teachers' answers combined to one distribution.

    Args:
        names: of the teachers in the session.
        context: of the run.
        combine: "mean" and "weighted" of probabilities, "gated" weighs them anew for each item, "logits" averages logits.
        temperature: at which probabilities are combined.
        weights: of the teachers; equal when empty.
        gate: what trust in a teacher is made of.
    """

    def __init__(self, names: Sequence[str], context: Context, combine: Combine, temperature: float, weights: Sequence[float] = (), gate: Gate = "entropy"):
        super().__init__(names, context)
        self.combine, self.temperature, self.gate = combine, temperature, gate
        self.weights = torch.tensor(weights or [1.0] * len(self.names), dtype=torch.float64)
        self.weights = self.weights / self.weights.sum()

    @property
    def model(self) -> nn.Module:
        return Panel(self)

    def settings(self) -> str:
        return f"{self.combine} {self.temperature} {self.weights.tolist()} {self.gate}"

    def joined(self, signals: Sequence[Signal], batch: Batch) -> Signal:
        one = signals[0].dense
        for name, signal in zip(self.names, signals, strict=True):
            if signal.dense.shape != one.shape:
                raise KdError(
                    f"teacher {name} answers {tuple(signal.dense.shape)}, teacher {self.names[0]} {tuple(one.shape)}",
                    "an ensemble's teachers know the same classes in the same order; distill merge unites several label sets",
                )
        logits = torch.stack([wide(signal.dense) for signal in signals])
        weights = self.weights.to(logits.device, logits.dtype)
        if self.combine == "logits":
            return Signal(torch.tensordot(weights, logits, 1))
        shares = gates(logits, self.gate) if self.combine == "gated" else weights.view(-1, *[1] * (logits.ndim - 2)).expand(logits.shape[:-1])
        return Signal(mixture(logits, self.temperature, shares))


class Ensemble(SeveralTeachers, Soft):
    """Learn from several teachers of one task at once.

    The teacher's distribution is p = Σ_k w_k softmax(z_k / T), or softmax of Σ_k w_k z_k / T with --combine logits; w is
    equal, given (--weights), or for each item the teachers' trust in their answers (gated: c_k / Σ c_j with
    c = 1 - entropy / log classes). The loss is that of `distill soft`.
    """

    id: ClassVar[str] = "distill.ensemble"

    combine: Combine = param("mean", "of probabilities: their mean, weighted by --weights, or gated by how sure each is of an item; or the mean of logits")
    weights: tuple[float, ...] = param((), "of the teachers, in their order; only what they are to each other counts")
    gate: Gate = param("entropy", "what tells how sure a teacher is", advanced=True)

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        weighing = self.combine in ("weighted", "logits")
        if self.combine == "weighted" and not self.weights:
            yield "--combine weighted wants --weights, a number a teacher"
        if self.weights and not weighing:
            yield f"--weights go with --combine weighted or logits, not {self.combine}"
        yield from self.weighted_oddly(self.weights)
        if self.combine != "logits" and self.temperature_schedule != "constant":
            yield f"--combine {self.combine} mixes probabilities of one temperature; leave out --temperature-schedule, or take --combine logits"
        if self.combine != "logits" and not self.of_probabilities:
            yield f"--divergence {self.divergence} compares answers as they are, so take their mean: --combine logits"

    def source(self, context: Context) -> Source:
        refuse(self)
        return Combined(self.teachers, context, self.combine, self.temperature, self.weights, self.gate)

    def teach(self, model: nn.Module, context: Context) -> nn.Module:
        made = super().teach(model, context)
        if (told := measured(self, made, context if self.student is None else replace(context, original=model))) is not None:
            context.note(told)
        return made


def measured(stage: Ensemble, student: nn.Module, context: Context) -> str | None:
    """The figures of the student, of its ensemble and of each teacher on the eval data; None where there is none to score on."""
    data, task = scored_data(context), context.task
    if data is None:
        return None
    source = stage.source(context)
    assert isinstance(source, Combined)
    try:
        each = {name: figure([live.model], data, context) for name, live in zip(source.names, source.lives, strict=True)}
        together = figure([source.model], data, context)
    finally:
        source.close()
    own = figure([student], data, context)
    members = ", ".join(f"{name} {number(value)}" for name, value in each.items())
    return f"{task.metric} on the eval data: the student {number(own)}, its ensemble {number(together)}; the teachers {members}"
