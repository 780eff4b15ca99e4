"""Sensitivity: which groups can lose units at the least damage for what it saves, measured on data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from kdkit_prune.groups import Group
from kdkit_prune.selection import ladder_of, removable, take_first

ROUNDS = 2
"""Times that damages are measured: they add up only roughly, so that the second time starts from what the first one cut."""

SHARES = (0.25, 0.5)
"""Of its remaining units a group loses at most the larger in one round."""

Plan = list[Tensor]
"""For each group the units to remove, (units,) bool."""


def allocate(
    groups: Sequence[Group],
    scores: Sequence[Tensor],
    round_to: int,
    target: float,
    cost: Callable[[Plan], float],
    damage: Callable[[Plan], float],
    tick: Callable[[], None] = lambda: None,
) -> Plan | None:
    """The plan that meets a target of cost at little damage, or None if no plan does.

    Round by round: measure for each group the damage and the saving of losing some more units, then take the cheapest step again and again,
    by damage per saving and over all sizes of steps, until the round's share of the target is reached.

    Args:
        scores: (units,) of each group; the lowest go first.
        cost: of a plan, as a share of the whole model's, such as its multiply-adds.
        damage: of a plan.
    """
    counts, ladders = [0] * len(groups), [ladder_of(group, score) for group, score in zip(groups, scores, strict=True)]

    def plan(numbers: Sequence[int]) -> Plan:
        return take_first(groups, ladders, numbers)

    for number in range(1, ROUNDS + 1):
        goal = target ** (number / ROUNDS)
        whole, harm = cost(plan(counts)), damage(plan(counts)) if any(counts) else 0.0
        steps: dict[tuple[int, int], tuple[float, float]] = {}
        for index, group in enumerate(groups):
            for wanted in _further(group, counts[index], round_to):
                tick()
                tried = plan(_with(counts, index, wanted))
                steps[index, wanted] = (max(damage(tried) - harm, 0.0), whole - cost(tried))
        counts = _cheapest(counts, steps, goal, lambda numbers: cost(plan(numbers)))
    return plan(counts) if cost(plan(counts)) <= target else None


def _further(group: Group, count: int, round_to: int) -> list[int]:
    """How many units may be gone after a round, from `count` before it, ascending."""
    wanted = {removable(group, count + int((group.steps - count) * share), round_to) for share in SHARES}
    return sorted(number for number in wanted if number > count)


def _cheapest(counts: Sequence[int], steps: dict[tuple[int, int], tuple[float, float]], goal: float, cost: Callable[[Sequence[int]], float]) -> list[int]:
    """Take steps by damage per saving until the goal is met, or no step is left."""
    now, taken = list(counts), dict.fromkeys(range(len(counts)), (0.0, 0.0))
    while cost(now) > goal:
        open_steps = {}
        for (index, wanted), (harm, saving) in steps.items():
            more = saving - taken[index][1]
            if wanted > now[index] and more > 0:
                open_steps[index, wanted] = (harm - taken[index][0]) / more
        if not open_steps:
            break
        index, wanted = min(open_steps, key=open_steps.__getitem__)
        now[index], taken[index] = wanted, steps[index, wanted]
    return now


def _with(counts: Sequence[int], index: int, number: int) -> list[int]:
    return [number if place == index else count for place, count in enumerate(counts)]
