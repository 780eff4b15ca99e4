"""The jackknife against formulas that are known."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdkit.measurement.confidence import t_quantile
from kdkit.measurement.jackknife import half_width_of_groups, half_widths

NUMBERS = st.lists(st.floats(-10, 10), min_size=2, max_size=20)


def one_each(values):
    return [({"score": torch.tensor(value, dtype=torch.float64)}, 1) for value in values]


def mean(means):
    return {"score": float(means["score"])}


@given(NUMBERS)
def test_of_a_mean_it_is_the_t_interval(values):
    expected = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    assert half_widths(one_each(values), mean)["score"] == pytest.approx(expected, abs=1e-9)
    assert half_width_of_groups(values) == pytest.approx(expected, abs=1e-9)


@given(NUMBERS, st.floats(0, 1))
def test_a_smooth_function_of_a_mean_has_its_width_times_the_slope_and_finite_data_narrow_it(values, share):
    steep = half_widths(one_each(values), lambda means: {"score": 3 * float(means["score"])}, share)["score"]
    assert steep == pytest.approx(3 * share * half_widths(one_each(values), mean)["score"], abs=1e-9)


def test_perplexity_which_is_no_mean_has_the_width_of_the_delta_method():
    losses = (torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1).split(10)
    sums = [({"loss": part.sum()}, len(part)) for part in losses]
    found = half_widths(sums, lambda means: {"perplexity": float(means["loss"].exp())})["perplexity"]
    whole = torch.cat(losses)
    assert found == pytest.approx(1.96 * float(whole.mean().exp()) * float(whole.std()) / 4000**0.5, rel=0.4)


def test_a_single_group_or_groups_in_which_nothing_counts_give_no_interval():
    assert half_widths(one_each([1.0]), mean) == {}
    assert half_widths([(part, 0) for part, _ in one_each([1.0, 2.0, 3.0])], mean) == {}
    assert math.isnan(half_width_of_groups([1.0]))
