"""Bit allocation: within the budget, and near what trying every plan finds."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as some

from kdkit_quantize.bit_allocation import allocate_bits

WIDTHS = (2, 3, 4, 8)
LAYERS = some.lists(some.tuples(some.integers(1, 500), some.floats(1e-3, 1e3)), min_size=1, max_size=5)


def errors_of(layers: list[tuple[int, float]]) -> tuple[dict[str, int], dict[str, dict[int, float]]]:
    """Sizes, and errors that fall by a factor of 4 with every bit."""
    sizes = {str(index): size for index, (size, _) in enumerate(layers)}
    return sizes, {str(index): {bits: weight * 4.0**-bits for bits in WIDTHS} for index, (_, weight) in enumerate(layers)}


def total(plan, errors) -> float:
    return sum(errors[name][bits] for name, bits in plan.items())


def cost(plan, sizes) -> int:
    return sum(sizes[name] * bits for name, bits in plan.items())


@given(LAYERS, some.floats(2, 8))
@settings(deadline=None)
def test_the_plan_keeps_the_budget_and_errs_no_more_than_the_same_bits_everywhere(layers, average):
    sizes, errors = errors_of(layers)
    plan = allocate_bits(sizes, errors, average)
    assert cost(plan, sizes) <= average * sum(sizes.values())
    for bits in WIDTHS:
        if bits <= average:
            assert total(plan, errors) <= total(dict.fromkeys(sizes, bits), errors) * (1 + 1e-9)


@given(LAYERS, some.floats(2, 8))
@settings(deadline=None, max_examples=60)
def test_the_plan_errs_hardly_more_than_the_best_of_all_plans_with_one_step_less_to_spend(layers, average):
    """What the greedy steps can lose is the last step that does not fit, which is at most 6 bits of the largest layer."""
    sizes, errors = errors_of(layers)
    plan = allocate_bits(sizes, errors, average)
    budget = average * sum(sizes.values()) - 6 * max(sizes.values())
    plans = (dict(zip(sizes, bits, strict=True)) for bits in itertools.product(WIDTHS, repeat=len(sizes)))
    within = [total(other, errors) for other in plans if cost(other, sizes) <= budget]
    assert not within or total(plan, errors) <= min(within) * (1 + 1e-9)


def test_the_layer_that_disturbs_more_gets_more_bits():
    sizes, errors = errors_of([(100, 1.0), (100, 1000.0)])
    plan = allocate_bits(sizes, errors, 3)
    assert plan["1"] > plan["0"]


def test_a_layer_gets_no_bits_that_save_no_error():
    assert allocate_bits({"a": 10}, {"a": {2: 1.0, 4: 1.0, 8: 1.0}}, 8) == {"a": 2}
