"""Selection: which units go, given their scores and a ratio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, floor
from typing import Literal

import torch
from torch import Tensor

from kdkit_prune.groups import Group

Scope = Literal["layer", "global"]

Ladder = list[tuple[float, list[int]]]
"""The steps in which a group shrinks, the least important first: a score, and the units that go in this step."""


def select(groups: Sequence[Group], scores: Sequence[Tensor], ratio: float, scope: Scope, round_to: int) -> list[Tensor]:
    """For each group the units to remove, (units,) bool: the least important, at most the `ratio` of them, never all.

    With "layer" the ratio holds in every group; with "global" over all groups of a kind together, so that the unimportant
    ones lose more. What stays is rounded up to a multiple of `round_to` channels.
    """
    ladders = [ladder_of(group, score) for group, score in zip(groups, scores, strict=True)]
    asked = [floor(group.steps * ratio + 1e-9) for group in groups] if scope == "layer" else _global(groups, ladders, ratio, round_to)
    return take_first(groups, ladders, [removable(group, count, round_to) for group, count in zip(groups, asked, strict=True)])


def take_first(groups: Sequence[Group], ladders: Sequence[Ladder], counts: Sequence[int]) -> list[Tensor]:
    """For each group the units to remove, (units,) bool: as many of the first steps of its ladder as stated."""
    return [_mask(group, [units for _, units in ladder[:count]]) for group, ladder, count in zip(groups, ladders, counts, strict=True)]


def removable(group: Group, asked: int, round_to: int) -> int:
    """How many of the `asked` steps may go, so that a multiple of `round_to` channels, and at least one unit, stays.

    >>> removable(Group("conv", "channels", 30, ()), 20, 8)
    14
    """
    step = group.step(round_to)
    keep = max(ceil((group.steps - asked) / step) * step, step)
    return max(group.steps - keep, 0)


def ratios(groups: Sequence[Group], scope: Scope) -> list[float]:
    """All ratios at which the selection can change, ascending, below 1."""
    if scope == "global":
        totals = [sum(group.steps for group in groups if group.kind == kind) for kind in {group.kind for group in groups}]
    else:
        totals = list({group.steps for group in groups})
    return sorted({count / total for total in totals for count in range(1, total)})


def smallest(candidates: Sequence[float], reached: Callable[[float], bool]) -> float | None:
    """The smallest candidate for which `reached` holds, by bisection; None where it holds for none.

    >>> smallest([0.1, 0.2, 0.3, 0.4], lambda ratio: ratio > 0.15)
    0.2
    """
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(candidates[middle]) else (middle + 1, high)
    return candidates[low] if low < len(candidates) else None


def ladder_of(group: Group, score: Tensor) -> Ladder:
    """The steps in which a group shrinks, the least important first: a unit of every bundle each, with their mean score."""
    size = group.steps
    order = score.reshape(group.bundles, size).argsort(dim=1, stable=True) + torch.arange(group.bundles)[:, None] * size
    return [(float(score[units].mean()), units.tolist()) for units in order.T]


def _global(groups: Sequence[Group], ladders: Sequence[Ladder], ratio: float, round_to: int) -> list[int]:
    """Steps to take in each group when all groups of a kind compete; one that has shrunk as far as it may leaves its share to the others."""
    asked = [0] * len(groups)
    most = [removable(group, group.steps, round_to) for group in groups]
    for kind in {group.kind for group in groups}:
        members = [index for index, group in enumerate(groups) if group.kind == kind]
        left = floor(sum(groups[index].steps for index in members) * ratio + 1e-9)
        for _, place in sorted((score, index) for index in members for score, _ in ladders[index]):
            if left and asked[place] < most[place]:
                asked[place] += 1
                left -= 1
    return asked


def _mask(group: Group, steps: Sequence[list[int]]) -> Tensor:
    gone = torch.zeros(group.units, dtype=torch.bool)
    gone[[unit for units in steps for unit in units]] = True
    return gone
