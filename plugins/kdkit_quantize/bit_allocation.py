"""Bit allocation: more bits for the layers whose rounding disturbs the model's output most, under a budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class _Raise(NamedTuple):
    """More bits for one layer: the error that it saves for each bit of the file, and the step itself."""

    gain: float
    layer: str
    before: int
    bits: int
    cost: int


def allocate_bits(sizes: Mapping[str, int], errors: Mapping[str, Mapping[int, float]], average: float) -> dict[str, int]:
    """The bits of each layer with a small sum of errors, at no more than `average` bits a weight.

    The errors of the layers are taken as independent, so that they add up. From the fewest bits on, the step that saves most error for the bits it
    costs comes first, along the lower convex hull of each layer's errors (Shoham and Gersho, 1988); then single steps use up what is left. The same
    bits for all layers, with such steps, are the result where they err less.

    Args:
        sizes: weights of each layer.
        errors: of each layer, bits -> squared error at the model's output.
        average: bits a weight, over all layers.

    >>> allocate_bits({"calm": 100, "touchy": 100}, {"calm": {2: 1.0, 4: 0.1}, "touchy": {2: 50.0, 4: 5.0}}, 3)
    {'calm': 2, 'touchy': 4}
    """
    budget = average * sum(sizes.values())
    plans = [_along_the_hull(sizes, errors, budget)]
    for bits in sorted({bits for options in errors.values() for bits in options}):
        if bits <= average and all(bits in options for options in errors.values()):
            plans.append(dict.fromkeys(errors, bits))
    return min((_filled(plan, sizes, errors, budget) for plan in plans), key=lambda plan: _total(plan, errors))


def _total(plan: Mapping[str, int], errors: Mapping[str, Mapping[int, float]]) -> float:
    return sum(errors[name][bits] for name, bits in plan.items())


def _cost(plan: Mapping[str, int], sizes: Mapping[str, int]) -> int:
    return sum(bits * sizes[name] for name, bits in plan.items())


def _along_the_hull(sizes: Mapping[str, int], errors: Mapping[str, Mapping[int, float]], budget: float) -> dict[str, int]:
    chosen = {name: min(options) for name, options in errors.items()}
    steps = [step for name in errors for step in _steps(name, sizes[name], errors[name])]
    for step in sorted(steps, key=lambda step: (-step.gain, step.bits)):
        if step.before == chosen[step.layer] and _cost(chosen, sizes) + step.cost <= budget:
            chosen[step.layer] = step.bits
    return chosen


def _filled(plan: dict[str, int], sizes: Mapping[str, int], errors: Mapping[str, Mapping[int, float]], budget: float) -> dict[str, int]:
    """The plan with the single steps that save most error and fit in the rest of the budget."""
    plan = dict(plan)
    while True:
        left = budget - _cost(plan, sizes)
        steps = [
            (errors[name][plan[name]] - errors[name][bits], name, bits)
            for name in plan
            for bits in errors[name]
            if bits > plan[name] and (bits - plan[name]) * sizes[name] <= left
        ]
        if not steps or max(steps)[0] <= 0:
            return plan
        _, name, bits = max(steps)
        plan[name] = bits


def _steps(name: str, size: int, errors: Mapping[int, float]) -> list[_Raise]:
    """The steps along the lower convex hull of a layer's errors, whose gains fall."""
    steps: list[_Raise] = []
    bits, most = min(errors), max(errors)
    while bits < most:
        more = [_Raise((errors[bits] - errors[other]) / ((other - bits) * size), name, bits, other, (other - bits) * size) for other in errors if other > bits]
        best = max(more, key=lambda step: (step.gain, step.bits))
        if best.gain <= 0:
            break
        steps.append(best)
        bits = best.bits
    return steps
