"""The objective: the terms of all parts as one loss, whose value does not depend on how a step is cut into batches.

Each term is summed over a batch and divided by what the whole optimizer step holds (items, or counted tokens), which is
known before the first forward pass. So 1 x 64 and 4 x 16 are the same step, and padding changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.tasks import Task
from kdkit.tasks.contract import wide
from kdkit.training.balance import Share
from kdkit.training.part import Step, Term, TrainPart
from kdkit.training.record import Record


@dataclass(frozen=True)
class Counts:
    """What one optimizer step holds: items, tokens, labels, values by the name of a term with a mask; and batches.

    Tokens and labels are None where the task counts items.
    """

    items: int
    tokens: int | None
    labels: int | None
    masked: Mapping[str, int]
    batches: int

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
        return cls(sum(batch.size for batch in window), tokens, sum(map(task.count, window)) if labelled else None, masked, len(window))


class Objective:
    """The sum of weight x term over the parts."""

    def __init__(self, parts: Mapping[str, TrainPart], record: Record):
        self.parts = parts
        self.record = record

    def loss(self, step: Step, counts: Counts, shares: list[Share] | None = None) -> Tensor:
        """One batch's share of the step's loss, a scalar; each term's value goes into the record.

        Args:
            shares: takes each term with its graph, where somebody wants to look at them one by one.

        Raises:
            KdError: a term whose shape fits neither items nor tokens.
        """
        total: Tensor | None = None
        for title, part in self.parts.items():
            for term in part.terms(step):
                weight = float(term.weight(step.progress)) if callable(term.weight) else term.weight
                mean = _share(term, step, counts)
                name = self.shown(title, term.name)
                self.record.add(step.index, name, mean, weight)
                if shares is not None:
                    shares.append(Share(name, mean, weight, term.weight))
                total = mean * weight if total is None else total + mean * weight
        if total is None or not total.requires_grad:
            raise KdError(f"the loss of {' and '.join(self.parts)} does not depend on the weights that train", "a part must yield a term made from step.output")
        return total

    def shown(self, title: str, term: str) -> str:
        """How a part's term is called beside those of other parts."""
        return f"{title}.{term}" if len(self.parts) > 1 else term

    def reweighted(self, name: str, factor: float, beside: str) -> str:
        """How a person multiplies the weight of the term shown under that name, but not that of another; empty where no option does."""
        for title, part in self.parts.items():
            prefix = self.shown(title, "")
            if name.startswith(prefix) and (option := part.reweighted(name.removeprefix(prefix), factor, beside.removeprefix(prefix))):
                return f"{title.replace('.', ' ', 1)} {option}" if len(self.parts) > 1 else option
        return ""


def _share(term: Term, step: Step, counts: Counts) -> Tensor:
    """The sum of a batch's values over what the whole step holds."""
    values = wide(term.values)
    if term.penalty:
        return values * (step.batch.size / counts.items)
    if values.dim() == 0 or len(values) != step.batch.size:
        raise _misshapen(term, step)
    mask, held = _counted(term, values, step, counts)
    if mask is None:
        return (values if values.dim() == 1 else values.flatten(1).mean(1)).sum() / held
    if mask.shape != values.shape:
        raise KdError(f"term {term.name!r} has values of shape {tuple(values.shape)} and a mask of shape {tuple(mask.shape)}", "give one bool a value")
    # where, and not a product: what stands in the padding may be infinite
    return torch.where(mask, values, 0.0).sum() / held


def _counted(term: Term, values: Tensor, step: Step, counts: Counts) -> tuple[Tensor | None, int | Tensor]:
    """Which values count, and what their sum is divided by."""
    if term.labels and counts.labels is not None:
        return step.task.labelled(step.batch), max(counts.labels, 1)
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
            f"its part must say how many values count: counts(batch) -> {{{term.name!r}: n}}",
            "or leave out --accumulate",
        )
    return mask.sum().clamp_min(1)


def _misshapen(term: Term, step: Step) -> KdError:
    return KdError(
        f"term {term.name!r} has values of shape {tuple(term.values.shape)} for a batch of {step.batch.size} items",
        "return one value an item, or one a token, and leave the mean to the loop",
        "a number about the weights alone is Term(..., penalty=True)",
    )
