"""An ensemble: one student learns from several teachers of the same task.

You, Xu, Xu, Tao, "Learning from Multiple Teacher Networks", 2017; Hinton, Vinyals, Dean, 2015 (arXiv:1503.02531), section 3.
The note after the training shows the metric of each teacher, of their ensemble, and of the student.

Pitfalls: teachers that err on the same items are not better than one of them. The gate trusts confident teachers, and a badly
calibrated teacher is confident where it is wrong. All teachers run at each step; with --cache each runs once for each item.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdkit import Batch, KdError, Task, param
from kdkit.display import number
from kdkit.tasks import at_least_float32
from kdkit_distill.evaluation import figure, scored_data
from kdkit_distill.response.soft import Soft
from kdkit_distill.scheme.stage import SeveralTeachers, refuse
from kdkit_distill.signals import Signal
from kdkit_distill.teachers.sources import MultiSource, Source, TeacherEnsemble

if TYPE_CHECKING:
    from kdkit import Context

Combine = Literal["mean", "weighted", "gated", "logits"]
Gate = Literal["entropy", "confidence"]

_LEAST = 1e-6
"""The least trust in a teacher, so that the sum is above 0 if no teacher is confident."""


def mixture(logits: Tensor, temperature: float, shares: Tensor | None = None) -> Tensor:
    """T · log Σ_k w_k softmax(z_k / T): logits whose softmax at T is the mixture of the teachers' probabilities.

    Args:
        logits: (teachers, ..., classes); -inf rules a class out.
        temperature: T, above 0.
        shares: w, (teachers, ...), not negative, with sum 1 over the teachers; default: equal.

    Returns:
        (..., classes), float32 at least.

    >>> both = torch.tensor([[[0.0, 9.0]], [[9.0, 0.0]]])
    >>> mixture(both, 2.0).div(2.0).softmax(-1)
    tensor([[0.5000, 0.5000]])
    """
    predicted = torch.log_softmax(at_least_float32(logits) / temperature, -1)
    weights = predicted.new_full(predicted.shape[:-1], 1 / len(predicted)) if shares is None else shares.to(predicted.dtype)
    return temperature * torch.logsumexp(predicted + weights.log()[..., None], 0)


def gates(logits: Tensor, gate: Gate = "entropy") -> Tensor:
    """How far each teacher is trusted with an item: c_k / Σ_j c_j.

    c = 1 - H(p) / log(classes) for "entropy", 0 for a uniform prediction and 1 for a certain one; c = max p for
    "confidence"; p = softmax(z) at temperature 1.

    Args:
        logits: (teachers, ..., classes).

    Returns:
        (teachers, ...), with sum 1 over the teachers.

    >>> gates(torch.tensor([[[0.0, 0.0]], [[50.0, 0.0]]])).round(decimals=3)
    tensor([[0.],
            [1.]])
    """
    predicted = torch.log_softmax(at_least_float32(logits), -1)
    share = predicted.exp()
    if gate == "confidence":
        trust = share.amax(-1)
    else:
        entropy = -torch.where(share > 0, share * predicted, 0.0).sum(-1)
        trust = 1 - entropy / math.log(predicted.shape[-1])
    trust = trust.clamp_min(_LEAST)
    return trust / trust.sum(0)


class Combined(MultiSource):
    """The teachers' predictions combined into one distribution.

    Args:
        names: of the teachers in the session.
        context: of the run.
        combine: "mean" or "weighted" mean of probabilities, "gated" with weights for each item, or "logits" for a mean of logits.
        temperature: at which probabilities are combined.
        weights: of the teachers; equal if empty.
        gate: the measure of a teacher's confidence.
    """

    def __init__(self, names: Sequence[str], context: Context, combine: Combine, temperature: float, weights: Sequence[float] = (), gate: Gate = "entropy"):
        super().__init__(names, context)
        self.combine, self.temperature, self.gate = combine, temperature, gate
        self.weights = torch.tensor(weights or [1.0] * len(self.names), dtype=torch.float64)
        self.weights = self.weights / self.weights.sum()

    @property
    def model(self) -> nn.Module:
        return TeacherEnsemble(self)

    def settings(self) -> str:
        return f"{self.combine} {self.temperature} {self.weights.tolist()} {self.gate}"

    def joined(self, signals: Sequence[Signal], batch: Batch) -> Signal:
        one = signals[0].dense
        for name, signal in zip(self.names, signals, strict=True):
            if signal.dense.shape != one.shape:
                raise KdError(
                    f"teacher {name} answers {tuple(signal.dense.shape)}, teacher {self.names[0]} {tuple(one.shape)}",
                    "teachers of an ensemble need the same classes in the same order; distill merge unites several label sets",
                )
        logits = torch.stack([at_least_float32(signal.dense) for signal in signals])
        weights = self.weights.to(logits.device, logits.dtype)
        if self.combine == "logits":
            return Signal(torch.tensordot(weights, logits, 1))
        shares = gates(logits, self.gate) if self.combine == "gated" else weights.view(-1, *[1] * (logits.ndim - 2)).expand(logits.shape[:-1])
        return Signal(mixture(logits, self.temperature, shares))


class Ensemble(Soft, SeveralTeachers):
    """Learn from several teachers of one task at once.

    The teacher's distribution is p = Σ_k w_k softmax(z_k / T), or softmax of Σ_k w_k z_k / T with --combine logits; w is
    equal, set by --weights, or computed for each item from the teachers' confidence (gated: c_k / Σ c_j with
    c = 1 - entropy / log classes). The loss is that of `distill soft`.
    """

    id: ClassVar[str] = "distill.ensemble"
    known_as: ClassVar[tuple[str, ...]] = ("multi-teacher KD", "multi-teacher distillation")

    combine: Combine = param("mean", "mean of probabilities, weighted by --weights, or gated by each teacher's confidence in an item; or the mean of logits")
    weights: tuple[float, ...] = param((), "of the teachers, in their order; only their ratios matter")
    gate: Gate = param("entropy", "measure of a teacher's confidence", advanced=True)

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        weighing = self.combine in ("weighted", "logits")
        if self.combine == "weighted" and not self.weights:
            yield "--combine weighted needs --weights, one number for each teacher"
        if self.weights and not weighing:
            yield f"--weights works with --combine weighted or logits, not {self.combine}"
        yield from self.weight_conflicts(self.weights)
        if self.combine != "logits" and self.temperature_schedule != "constant":
            yield f"--combine {self.combine} mixes probabilities of one temperature; leave out --temperature-schedule, or use --combine logits"
        if self.combine != "logits" and not self.of_probabilities:
            yield f"--divergence {self.divergence} compares raw outputs, so use their mean: --combine logits"

    def incompatible_task(self, task: Task) -> str:
        if task.predicts in ("labels", "numbers", "vectors") and self.combine != "logits":
            return f"--combine {self.combine} mixes distributions over classes, and the models predict {task.predicts}; use the mean of their outputs: --combine logits"
        return super().incompatible_task(task)

    def source(self, context: Context) -> Source:
        refuse(self)
        return Combined(self.teachers, context, self.combine, self.temperature, self.weights, self.gate)

    def train(self, model: nn.Module, context: Context) -> nn.Module:
        made = super().train(model, context)
        if (texts := measured(self, made, context if self.student is None else replace(context, original=model))) is not None:
            context.note(texts)
        return made


def measured(stage: Ensemble, student: nn.Module, context: Context) -> str | None:
    """The metrics of the student, of the ensemble and of each teacher on the eval data; None without eval data that can be scored."""
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
