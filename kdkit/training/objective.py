"""The objective: the terms of all parts as one loss, which does not depend on how a step is divided into batches.

Each term is summed over a batch and divided by what the optimizer step holds (items, or counted tokens), which is known before
the first forward pass. So 1 x 64 and 4 x 16 are the same step, and padding changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.tasks import Task
from kdkit.tasks.task import at_least_float32
from kdkit.training.gradient_balance import TermValue
from kdkit.training.loss_history import LossHistory
from kdkit.training.part import Step, Term, TrainPart


@dataclass(frozen=True)
class Counts:
    """What one optimizer step holds: items, tokens, labels, values by the name of a term with a mask; and batches.

    Tokens and labels are None where the task counts items; `divisor` is what a sum of label losses is divided by, with the class
    weights of a user's loss.
    """

    items: int
    tokens: int | None
    labels: int | None
    masked: Mapping[str, int]
    batches: int
    divisor: float | None = None

    @classmethod
    def of(cls, window: Sequence[Batch], task: Task, parts: Sequence[TrainPart]) -> Counts:
        """Count the batches of one optimizer step."""
        masks = [mask for batch in window if (mask := task.mask(batch)) is not None]
        labelled = all(batch.labels is not None for batch in window) or not task.needs_labels
        masked: Counter[str] = Counter()
        for part in parts:
            if type(part).counts is not TrainPart.counts:
                for batch in window:
                    masked.update(part.counts(batch))
        tokens = sum(int(mask.sum()) for mask in masks) if masks else None
        labels, divisor = (sum(map(task.count, window)), sum(map(task.divisor, window))) if labelled else (None, None)
        return cls(sum(batch.size for batch in window), tokens, labels, masked, len(window), divisor)

    @classmethod
    def total(cls, shares: Sequence[Counts]) -> Counts:
        """The counts of one step over several processes; a process without batches adds nothing.

        >>> Counts.total([Counts(4, None, 4, {"own": 1}, 1), Counts(2, None, 1, {"own": 2}, 1), Counts(0, None, 0, {}, 0)])
        Counts(items=6, tokens=None, labels=5, masked={'own': 3}, batches=2, divisor=None)
        """
        filled = [share for share in shares if share.batches]
        masked: Counter[str] = Counter()
        for share in filled:
            masked.update(share.masked)

        def added(name: str) -> Any:
            values = [getattr(share, name) for share in filled]
            return None if None in values else sum(values)

        return cls(sum(share.items for share in filled), added("tokens"), added("labels"), dict(masked), sum(share.batches for share in filled), added("divisor"))


class Objective:
    """The sum of weight x term over the parts."""

    def __init__(self, parts: Mapping[str, TrainPart], history: LossHistory):
        self.parts = parts
        self.history = history

    def terms(self, step: Step, counts: Counts) -> list[TermValue]:
        """One batch's share of each term, with its graph.

        Raises:
            KdError: a term whose shape fits neither items nor tokens.
        """
        found = []
        for title, part in self.parts.items():
            for term in part.terms(step):
                weight = float(term.weight(step.progress)) if callable(term.weight) else term.weight
                pull = term.pull and replace(
                    term.pull, group=self.full_name(title, term.pull.group), beside=self.full_name(title, term.pull.beside) if term.pull.beside else ""
                )
                found.append(TermValue(self.full_name(title, term.name), _share(term, step, counts), weight, term.weight, pull, label_loss=term.label_loss))
        return found

    def loss(self, step: Step, terms: Sequence[TermValue]) -> Tensor:
        """The weighted sum of the terms, a scalar; each term's value is added to the history."""
        total: Tensor | None = None
        for term in terms:
            weight = term.weight * term.factor
            self.history.add(step.index, term.name, term.value, weight)
            total = term.value * weight if total is None else total + term.value * weight
        if total is None or not total.requires_grad:
            raise KdError(f"the loss of {' and '.join(self.parts)} does not depend on the weights that train", "a part must yield a term made from step.output")
        return total

    def full_name(self, title: str, term: str) -> str:
        """The name of a part's term in reports; it begins with the stage where several parts train."""
        return f"{title}.{term}" if len(self.parts) > 1 else term

    def option_for_weight(self, name: str, factor: float, other: str) -> str:
        """The option that multiplies the weight of a term by a factor, and keeps the weight of another; empty if there is none."""
        for title, part in self.parts.items():
            prefix = self.full_name(title, "")
            if name.startswith(prefix) and (option := part.option_for_weight(name.removeprefix(prefix), factor, other.removeprefix(prefix))):
                return f"{title.replace('.', ' ', 1)} {option}" if len(self.parts) > 1 else option
        return ""


def _share(term: Term, step: Step, counts: Counts) -> Tensor:
    """The sum of a batch's values over what the whole step holds."""
    values = at_least_float32(term.values)
    if term.penalty:
        return values * (step.batch.size / counts.items)
    if values.dim() == 0 or len(values) != step.batch.size:
        raise _misshapen(term, step)
    mask, held = _counted(term, values, step, counts)
    if mask is None:
        return (values if values.dim() == 1 else values.flatten(1).mean(1)).sum() / held
    if mask.shape != values.shape:
        raise KdError(f"term {term.name!r} has values of shape {tuple(values.shape)} and a mask of shape {tuple(mask.shape)}", "return one bool for each value")
    # torch.where, not a product: values in the padding may be infinite
    return torch.where(mask, values, 0.0).sum() / held


def _counted(term: Term, values: Tensor, step: Step, counts: Counts) -> tuple[Tensor | None, float | Tensor]:
    """Which values count, and what their sum is divided by."""
    if term.labels and counts.labels is not None:
        held = counts.divisor if term.weighted and counts.divisor is not None else counts.labels
        return step.task.labelled(step.batch), held or 1
    if term.mask is not None:
        return term.mask, _held(term, term.mask, counts)
    if values.dim() > 1 and counts.tokens is not None:
        return step.task.mask(step.batch), max(counts.tokens, 1)
    return None, counts.items


def _held(term: Term, mask: Tensor, counts: Counts) -> int | Tensor:
    if term.name in counts.masked:
        return max(counts.masked[term.name], 1)
    if counts.batches > 1:
        raise KdError(
            f"term {term.name!r} has a mask of its own, and several batches make one step",
            f"its part must return how many values count: counts(batch) -> {{{term.name!r}: n}}",
            "or leave out --accumulate",
        )
    return mask.sum().clamp_min(1)


def _misshapen(term: Term, step: Step) -> KdError:
    return KdError(
        f"term {term.name!r} has values of shape {tuple(term.values.shape)} for a batch of {step.batch.size} items",
        "return one value per item or per token; the loop computes the mean",
        "a number about the weights alone is Term(..., penalty=True)",
    )
