"""Weight choice: the weights of terms with a `Pull`, chosen from the gradients of the first steps and fixed afterwards.

A published weight pulls about ten times as hard as the labels where it was published, and hundreds of times on a small net or a
large map. The ratio of the two gradients carries over, so it is what a technique declares. Measuring draws no random number and
keeps the graph.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.errors import KdError
from kdkit.training.gradient_balance import TermValue, gradients_of, heaviest
from kdkit.training.part import Pull

STEPS = 5
"""The steps whose gradients are measured; each costs one backward pass for the label loss and one for each group."""
BOUNDS = 1e-4, 1e2
"""The range of a factor: beyond it, the smaller gradient is of a term at its minimum, and says nothing about the rest of the training."""
_ROUNDING = 1e-6
"""A gradient below this share of the other one is rounding."""

Gather = Callable[[list[Any]], list[Any]]


@dataclass(frozen=True)
class Measured:
    """What one step gave for a group: the factor, or the reason why there is none."""

    factor: float | None
    reason: str = ""


class WeightChoice:
    """The factors of groups of terms: the geometric mean of those of the first steps.

    Args:
        gather: returns the objects of all processes, where several train.

    >>> weight = nn.Parameter(torch.tensor([1.0]))
    >>> label = TermValue("label", 2 * weight.sum(), 0.5, 0.5, label_loss=True)
    >>> hints = TermValue("hint", 100 * weight.sum(), 3.0, 3.0, Pull("hints", ratio=6.0, constant=3.0))
    >>> choice = WeightChoice()
    >>> choice.measure([label, hints], [weight])
    >>> [round(term.weight * term.factor, 3) for term in choice.applied([label, hints])]
    [0.5, 0.12]
    """

    def __init__(self, gather: Gather | None = None):
        self.gather = gather
        self.pulls: dict[str, Pull] = {}
        self.measured: dict[str, list[Measured]] = {}

    def is_open(self, terms: Sequence[TermValue]) -> bool:
        """Whether a group of these terms has gradients to be measured yet."""
        return any(term.pull is not None and len(self.measured.get(term.pull.group, ())) < STEPS for term in terms)

    def measure(self, terms: Sequence[TermValue], weights: Sequence[nn.Parameter], scale: float = 1.0) -> None:
        """Measure the gradients of a step of one batch; groups whose terms are not compared with anything in it wait for a later step.

        Args:
            terms: of the batch; their graph is kept.
            weights: the gradients are with respect to them.
            scale: loss scale, so that gradients do not underflow in half precision.
        """
        step = StepGradients(weights, len(weights), scale)
        step.add(terms, self._open(terms))
        self._keep(step.compare())

    def begin(self, weights: Sequence[nn.Parameter], model_weights: int, scale: float) -> StepGradients:
        """Begin to measure a step of several batches; `conclude` ends it."""
        return StepGradients(weights, model_weights, scale)

    def hold_back(self, step: StepGradients, terms: Sequence[TermValue]) -> list[TermValue]:
        """Add a batch to a step; return the terms that can be in the loss at once, since their weights are known."""
        held = step.add(terms, self._open(terms))
        return self.applied([term for term in terms if term.pull is None or term.pull.group not in held])

    def conclude(self, step: StepGradients) -> list[TermValue]:
        """Choose the weights of a step, and add the gradients of the terms that were held back; return those terms, with their factors."""
        self._keep(step.compare())
        for group in step.held:
            step.put_in(group, self.factor(group))
        return self.applied(step.held_terms)

    def _open(self, terms: Sequence[TermValue]) -> list[str]:
        return [group for group in dict.fromkeys(term.pull.group for term in terms if term.pull is not None) if len(self.measured.get(group, ())) < STEPS]

    def _keep(self, found: dict[str, Measured]) -> None:
        for group, measured in _together(found, self.gather).items():
            self.measured.setdefault(group, []).append(measured)

    def factor(self, group: str) -> float:
        """The factor of a group; 1 if none could be measured."""
        logs = [math.log(each.factor) for each in self.measured.get(group, ()) if each.factor is not None]
        return min(max(math.exp(statistics.fmean(logs)), BOUNDS[0]), BOUNDS[1]) if logs else 1.0

    def applied(self, terms: Sequence[TermValue]) -> list[TermValue]:
        """The terms with their factors."""
        self.pulls |= {term.pull.group: term.pull for term in terms if term.pull is not None}
        return [term if term.pull is None else replace(term, factor=self.factor(term.pull.group)) for term in terms]

    def notes(self) -> Iterator[str]:
        """The weight of each group, a line each, with its published one."""
        for group, pull in self.pulls.items():
            measured = self.measured.get(group, [])
            if any(each.factor is not None for each in measured):
                yield f"{group}: {pull.option} {pull.constant * self.factor(group):.4g} chosen from the gradients of the first steps; published: {pull.constant:g}"
            else:
                reason = measured[-1].reason if measured else "no other loss to compare it with"
                yield f"{group}: {pull.option} {pull.constant:g} as published; none was chosen: {reason}"

    def state(self) -> dict[str, list[list[Any]]]:
        """What was measured, as plain data for a checkpoint."""
        return {group: [[each.factor, each.reason] for each in measured] for group, measured in self.measured.items()}

    def load(self, state: Mapping[str, Sequence[Sequence[Any]]]) -> None:
        """Continue from what `state` gave."""
        self.measured = {group: [Measured(factor, reason) for factor, reason in measured] for group, measured in state.items()}


class StepGradients:
    """The gradients of an optimizer step, for each group that is measured and what it is compared with, summed over its batches.

    Args:
        weights: the gradients are with respect to them; the first `model_weights` are the model's, whose gradients are compared.
        scale: loss scale.
    """

    def __init__(self, weights: Sequence[nn.Parameter], model_weights: int, scale: float):
        self.weights, self.model_weights, self.scale = weights, model_weights, scale
        self.held: dict[str, Pull] = {}
        self.held_terms: list[TermValue] = []
        self._others: dict[str, str] = {}
        self._sums: dict[str, list[Tensor | None]] = {}
        self._failed: set[str] = set()
        self._shares: dict[str, float] = {}

    def add(self, terms: Sequence[TermValue], groups: Sequence[str]) -> list[str]:
        """Add the terms of a batch; return the groups among `groups` that it has something to compare with, and whose gradients it gave."""
        found: dict[str, list[TermValue]] = {"": [term for term in terms if term.label_loss][:1]}
        for term in terms:
            found.setdefault(term.name, []).append(term)
            if term.pull is not None and term.pull.group != term.name:
                found.setdefault(term.pull.group, []).append(term)
        compared: list[str] = []
        for group in groups:
            pull = next(term.pull for term in found[group] if term.pull is not None)
            other = self._other(pull, terms, found)
            if other is not None:
                self.held[group], self._others[group] = pull, other
                compared.append(group)
        for name in dict.fromkeys([*compared, *(self._others[group] for group in compared)]):
            self._add(name, found[name])
        given = [group for group in compared if group not in self._failed]
        for group in given:
            self._shares[group] = _now(found[group][0])
            self.held_terms += [replace(term, value=term.value.detach()) for term in found[group]]
        return given

    def _other(self, pull: Pull, terms: Sequence[TermValue], found: Mapping[str, Sequence[TermValue]]) -> str | None:
        """What a group is compared with, by name; empty for the label loss; None if it is not in this batch."""
        if pull.beside:
            return pull.beside if found.get(pull.beside) else None
        if found[""]:
            return ""
        first = next((term.pull.group if term.pull else term.name for term in terms if heaviest(term.declared)), pull.group)
        return None if first == pull.group else first

    def _add(self, name: str, terms: Sequence[TermValue]) -> None:
        """Add the gradient of terms with their weights; of the label loss with weight 1."""
        values = [term.value * (heaviest(term.declared) if name else 1.0) * self.scale for term in terms if term.value.requires_grad]
        before = self._sums.get(name) or [None] * len(self.weights)
        try:
            found = gradients_of(values, self.weights) if values else [None] * len(self.weights)
        except (KdError, RuntimeError):
            # such as too little memory, or checkpointing that allows only one backward pass; the training itself may work
            self._failed.add(name)
            return
        self._sums[name] = [_sum(one, other) for one, other in zip(before, found, strict=True)]

    def compare(self) -> dict[str, Measured]:
        """The factor of each group, or why there is none."""
        return {group: self._compare(group, other, self.held[group].ratio) for group, other in self._others.items()}

    def _compare(self, group: str, other: str, ratio: float) -> Measured:
        if {group, other} & self._failed:
            return Measured(None, "the gradients of single terms could not be computed")
        mine, theirs = self._norm(group), self._norm(other)
        for name, norm, beside in ((group, mine, theirs), (other or "the label loss", theirs, mine)):
            if not math.isfinite(norm):
                return Measured(None, f"the gradient of {name} is not finite at the first steps")
            if norm <= _ROUNDING * beside or not norm:
                return Measured(None, f"the gradient of {name} is 0 at the first steps")
        return Measured(ratio * theirs / mine)

    def _norm(self, name: str) -> float:
        norms = [gradient.float().norm() for gradient in self._sums[name][: self.model_weights] if gradient is not None]
        return float(torch.stack(norms).norm()) / self.scale if norms else 0.0

    def put_in(self, group: str, factor: float) -> None:
        """Add the gradient of a group with a factor to those of the weights."""
        for weight, gradient in zip(self.weights, self._sums.get(group, ()), strict=False):
            if gradient is not None:
                share = gradient * (factor * self._shares[group])
                weight.grad = share if weight.grad is None else weight.grad + share


def _now(term: TermValue) -> float:
    """A term's weight at this step, as a share of its largest."""
    largest = heaviest(term.declared)
    return term.weight / largest if largest else 0.0


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def _together(found: dict[str, Measured], gather: Gather | None) -> dict[str, Measured]:
    """What all processes measured: the geometric mean, so that all use the same weights."""
    if gather is None:
        return found
    everywhere = gather([found])
    merged: dict[str, Measured] = {}
    for group in dict.fromkeys(group for process in everywhere for group in process):
        measured = [each for process in everywhere if (each := process.get(group)) is not None]
        logs = [math.log(each.factor) for each in measured if each.factor is not None]
        merged[group] = Measured(math.exp(statistics.fmean(logs))) if logs else measured[0]
    return merged
