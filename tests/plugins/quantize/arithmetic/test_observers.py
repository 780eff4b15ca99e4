"""Observers: counts and ranges, against naive ones over all values at once."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdkit_quantize.arithmetic import METHODS, Grid, Histogram, Range, choose_range

values = arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e3, 1e3, width=32))


def seen(kind, parts, **options):
    made = kind(**options)
    for part in parts:
        made.update(part)
    return made


@pytest.mark.slow
@given(values, st.lists(st.integers(0, 60), max_size=4))
@settings(max_examples=60, deadline=None)
def test_ranges_and_histograms_are_the_same_however_the_data_is_cut_and_ordered(data, cuts):
    parts = [part for part in np.split(data, sorted(min(cut, len(data)) for cut in cuts)) if part.size]
    whole, cut, turned = seen(Histogram, [data], bins=16), seen(Histogram, parts, bins=16), seen(Histogram, parts[::-1], bins=16)
    for other in (cut, turned):
        assert np.array_equal(whole.counts, other.counts)
        assert whole.exponent == other.exponent
        assert whole.zeros == other.zeros == (data == 0).sum()
    for method in METHODS:
        assert choose_range(whole, method, Grid(8)) == choose_range(cut, method, Grid(8)) == choose_range(turned, method, Grid(8))
    assert choose_range(seen(Range, parts), "minmax", Grid(8)) == (data.min(), data.max())


@pytest.mark.slow
@given(values)
@settings(max_examples=60, deadline=None)
def test_a_histogram_counts_every_value_in_its_own_bin(data):
    made = seen(Histogram, np.split(data, range(1, len(data))), bins=16)
    naive = [0] * 32
    for value in data:
        naive[min(31, math.floor(float(value) / made.width) + 16)] += 1
    assert made.counts.tolist() == naive


def test_memory_does_not_grow_with_the_data():
    made = Histogram()
    random = np.random.default_rng(0)
    for scale in (1, 10, 1000):
        made.update(random.normal(size=50_000).astype(np.float32) * scale)
    assert made.counts.nbytes == 2 * made.bins * 8
    assert {name for name, value in vars(made).items() if isinstance(value, np.ndarray)} == {"counts"}
    assert made.counts.sum() == 150_000


@pytest.mark.parametrize("odd", [np.inf, np.nan])
def test_what_is_not_finite_is_refused(odd):
    with pytest.raises(ValueError, match="not finite"):
        Range().update(np.array([1.0, odd]))
