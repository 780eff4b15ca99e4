"""Clipping: the range that a method chooses, against the definition of the method in loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdkit_quantize.arithmetic import METHODS, Grid, Histogram, affine_of, choose_range, dequantize, entropy_threshold, quantize
from kdkit_quantize.arithmetic.clipping import SHRINKS, divergence, squared_error

EIGHT, FOUR, SIGNED = Grid(8), Grid(4), Grid(4, signed=True, narrow=True)


def histogram(*parts: np.ndarray) -> Histogram:
    made = Histogram()
    for part in parts:
        made.update(np.asarray(part, np.float32))
    return made


def bell(items: int = 20_000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=items).astype(np.float32)


def error(values: np.ndarray, ends: tuple[float, float], grid: Grid, symmetric: bool = False) -> float:
    scale, zero = affine_of(*ends, grid, symmetric)
    return float(((values - dequantize(quantize(values, scale, zero, grid), scale, zero)).astype(np.float64) ** 2).sum())


def test_a_tensor_of_zeros_has_an_empty_range():
    for method in METHODS:
        assert choose_range(histogram(np.zeros(5)), method, EIGHT) == (0, 0)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentiles_leave_out_at_most_their_share_on_either_side_and_a_bin_less_would_be_too_much(percentile):
    data = np.random.default_rng(1).normal(size=20_011).astype(np.float32)
    made = histogram(data)
    low, high = choose_range(made, "percentile", EIGHT, percentile=percentile)
    cut = (100 - percentile) / 200 * data.size
    assert (data < low).sum() <= cut < (data < low + made.width).sum()
    assert (data >= high).sum() <= cut < (data >= high - made.width).sum()
    assert choose_range(made, "percentile", EIGHT, percentile=100.0) == (data.min(), data.max())


def naive_divergence(magnitudes: list[int], kept: int, levels: int) -> float:
    """KL(P || Q) as the paper tells it, in loops."""
    inside, cut = magnitudes[:kept], sum(magnitudes[kept:])
    reference = [*inside[:-1], inside[-1] + cut]
    coarse = [0.0] * kept
    for level in range(levels):
        bins = [index for index in range(kept) if index * levels // kept == level]
        filled = [index for index in bins if reference[index] > 0]
        for index in filled:
            coarse[index] = sum(inside[other] for other in bins) / len(filled)
    total, spread, result = sum(reference), sum(coarse), 0.0
    for want, got in zip(reference, coarse, strict=True):
        if want > 0:
            q = max(got / spread, 1e-12) if spread else 1e-12
            result += want / total * math.log(want / total / q)
    return result


@pytest.mark.slow
@given(st.lists(st.integers(0, 100), min_size=8, max_size=40).filter(any), st.integers(2, 6))
@settings(max_examples=80, deadline=None)
def test_the_entropy_threshold_is_the_naive_one(magnitudes, levels):
    used = max(index for index, count in enumerate(magnitudes) if count) + 1
    candidates = range(levels, used + 1)
    kept = entropy_threshold(np.array(magnitudes), levels, step=1)
    if used <= levels:
        assert kept == used
        return
    naive = [naive_divergence(magnitudes, candidate, levels) for candidate in candidates]
    assert divergence(np.array(magnitudes), kept, levels) == pytest.approx(min(naive), abs=1e-9)
    for candidate, want in zip(candidates, naive, strict=True):
        assert divergence(np.array(magnitudes), candidate, levels) == pytest.approx(want, abs=1e-9)


def test_entropy_cuts_a_lone_outlier_and_keeps_an_even_spread():
    random = np.random.default_rng(2)
    bell = random.normal(size=50_000).astype(np.float32)
    low, high = choose_range(histogram(bell, [60.0]), "entropy", EIGHT)
    assert 2 < high < 30
    assert -30 < low < -2
    even = choose_range(histogram(random.uniform(-1, 1, 50_000).astype(np.float32)), "entropy", EIGHT)
    assert even == pytest.approx((-1, 1), abs=0.05)


def test_the_zeros_of_a_relu_do_not_hide_the_rest():
    random = np.random.default_rng(3)
    positive = np.abs(random.normal(size=20_000)).astype(np.float32)
    _, alone = choose_range(histogram(positive), "entropy", EIGHT)
    _, among_zeros = choose_range(histogram(positive, np.zeros(500_000)), "entropy", EIGHT)
    assert among_zeros == pytest.approx(alone, rel=0.05)


@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_takes_the_ends_of_least_error_among_all_shares_of_the_range(symmetric):
    """With symmetric ends there is one share to try, so the choice is the best of all; otherwise no single end can be improved."""
    values = np.append(bell(), [14.0, -3.0]).astype(np.float32)
    made = histogram(values)
    low, high = choose_range(made, "mse", FOUR, symmetric)
    found = error(values, (low, high), FOUR, symmetric)
    tried = [(made.lowest * share, made.highest * share) if symmetric else (low, made.highest * share) for share in SHRINKS]
    assert found <= 1.01 * min(error(values, ends, FOUR, symmetric) for ends in tried)
    assert found < 0.5 * error(values, (made.lowest, made.highest), FOUR, symmetric)


def test_mse_keeps_an_even_spread_and_ignores_how_many_zeros_there_are():
    even = np.random.default_rng(2).uniform(-1, 1, 50_000)
    assert choose_range(histogram(even), "mse", EIGHT) == pytest.approx((-1, 1), abs=0.03)
    positive = np.abs(bell())
    assert choose_range(histogram(positive, np.zeros(500_000)), "mse", FOUR) == choose_range(histogram(positive, [0.0]), "mse", FOUR)


def naive_alternation(values: np.ndarray, scale: float, zero: int, grid: Grid) -> float:
    """Leng et al., section 4.2, in loops: nearest integers, then the scale that fits them by least squares, then the zero point."""
    for _ in range(60):
        integers = [min(max(round(float(value) / scale) + zero, grid.lowest), grid.highest) for value in values]
        levels = [integer - zero for integer in integers]
        scale = sum(float(value) * level for value, level in zip(values, levels, strict=True)) / sum(level * level for level in levels)
        zero = round(sum(integer - float(value) / scale for value, integer in zip(values, integers, strict=True)) / len(integers))
    return scale


def test_admm_is_the_alternating_projection_from_the_best_range_of_mse():
    values = np.linspace(-1, 3, 301) ** 3
    made = histogram(values)
    scale, zero = affine_of(*choose_range(made, "mse", FOUR), FOUR)
    low, high = choose_range(made, "admm", FOUR)
    assert (high - low) / FOUR.steps == pytest.approx(naive_alternation(values, float(scale), int(zero), FOUR), rel=2e-3)


@pytest.mark.slow
@given(arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e3, 1e3, width=32)), st.sampled_from([EIGHT, FOUR, Grid(2), SIGNED]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_admm_is_never_worse_than_mse_nor_mse_than_the_whole_range(values, grid, symmetric):
    made = histogram(values)
    errors = [squared_error(made, choose_range(made, method, grid, symmetric), grid, symmetric) for method in ("admm", "mse", "minmax")]
    assert errors == sorted(errors)


def test_admm_fits_a_grid_better_than_any_share_of_the_range():
    values = np.abs(bell()) ** 1.5
    made = histogram(values)
    assert error(values, choose_range(made, "admm", Grid(2)), Grid(2)) < error(values, choose_range(made, "mse", Grid(2)), Grid(2))


def test_the_share_outside_is_counted():
    made = histogram(np.linspace(0, 1, 1001))
    assert made.share_outside(0.0, 0.9) == pytest.approx(0.1, abs=0.002)
    assert made.share_outside(0.0, 1.0) == 0
