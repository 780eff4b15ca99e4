"""Paired differences: the t interval against scipy, and the verdict that it allows."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdkit.measurement.confidence import SEEDS, gap_share, t_interval, t_quantile, verdict, within_t

stats = pytest.importorskip("scipy.stats")
DIFFERENCES = st.lists(st.floats(-10, 10, allow_nan=False).map(lambda value: round(value, 6)), min_size=2, max_size=12)


@given(st.floats(0, 1e6), st.integers(1, 400))
def test_the_distribution_is_that_of_scipy(t: float, df: int) -> None:
    # scipy itself is off by 3e-9 near 0: at df = 1 and t = 1e-8 the value is 2 / pi * atan(t)
    assert within_t(t, df) == pytest.approx(1 - 2 * stats.t.sf(t, df), abs=1e-8)


@pytest.mark.parametrize("t", [0.0, 5.7e-8, 1e-3, 1.0, 1e6])
def test_the_distribution_with_one_degree_of_freedom_is_cauchys(t: float) -> None:
    assert within_t(t, 1) == pytest.approx(2 / math.pi * math.atan(t), rel=1e-12, abs=1e-15)


@pytest.mark.slow
@given(st.integers(1, 400), st.floats(0.01, 0.999))
def test_the_quantile_is_that_of_scipy(df: int, level: float) -> None:
    assert t_quantile(df, level) == pytest.approx(stats.t.ppf(0.5 + level / 2, df), rel=1e-9)


@pytest.mark.slow
@given(DIFFERENCES)
def test_the_interval_is_that_of_scipys_paired_t_test(differences: list[float]) -> None:
    found = t_interval(differences)
    if len(set(differences)) > 1:
        low, high = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-7, abs=1e-9)
    else:
        assert (found.low, found.high) == pytest.approx((differences[0], differences[0]))


@pytest.mark.slow
@given(DIFFERENCES)
def test_opposite_differences_have_the_opposite_interval_and_verdict(differences: list[float]) -> None:
    found, opposite = t_interval(differences), t_interval([-each for each in differences])
    assert (found.low, found.high) == pytest.approx((-opposite.high, -opposite.low))
    swapped = {"helps": "hurts", "hurts": "helps"}
    assert verdict([-each for each in differences]) == swapped.get(verdict(differences), verdict(differences))


@pytest.mark.parametrize(
    ("gained", "expected"),
    [
        ([0.03, 0.02, 0.04], "helps"),
        ([-0.03, -0.02, -0.04], "hurts"),
        ([0.03, -0.001, 0.04], "no effect shown (n = 3)"),
        ([0.1, 0.001, 0.001], "no effect shown (n = 3)"),  # all on one side, and the interval includes 0
        ([0.03, 0.01], "no effect shown (n = 2)"),  # two seeds: t is 12.7
        ([0.0, 0.0, 0.0], "no effect shown (n = 3)"),
        ([0.02, 0.02], "helps"),
        ([0.5], "no verdict from one seed"),
        ([0.5, math.nan], "no verdict: a figure is not finite"),
    ],
)
def test_the_verdict_needs_an_interval_without_zero(gained: list[float], expected: str) -> None:
    assert verdict(gained) == expected


def test_one_difference_has_no_interval() -> None:
    found = t_interval([0.5])
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert not found.excludes_zero


@pytest.mark.parametrize(
    ("control", "compared", "reference", "better", "share"),
    [
        (69.06, 70.66, 72.34, "higher", 0.488),  # resnet 56 to 20, as RepDistiller has it
        (0.5, 0.5, 1.0, "higher", 0.0),
        (0.5, 0.4, 1.0, "higher", -0.2),
        (0.5, 1.1, 1.0, "higher", 1.2),
        (40.0, 30.0, 20.0, "lower", 0.5),
    ],
)
def test_the_share_of_the_gap_is_measured_from_control_to_reference(control: float, compared: float, reference: float, better: str, share: float) -> None:
    assert gap_share(control, compared, reference, better) == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize(("reference", "better"), [(0.5, "higher"), (0.4, "higher"), (0.6, "lower")])
def test_there_is_no_gap_if_the_reference_is_no_better(reference: float, better: str) -> None:
    assert gap_share(0.5, 0.55, reference, better) is None


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_without_an_effect_a_verdict_is_given_in_five_per_cent_of_the_comparisons(seeds: int) -> None:
    """Paired figures of two pipelines that differ by chance alone; the share of verdicts is within four standard errors of 5 %."""
    generator = random.Random(seeds)
    trials = 3000

    def gains() -> list[float]:
        both = [(seed + generator.gauss(0, 1), seed + generator.gauss(0, 1)) for seed in (generator.gauss(80, 3) for _ in range(seeds))]
        return [compared - control for compared, control in both]

    found = Counter(verdict(gains()) for _ in range(trials))
    share = (found["helps"] + found["hurts"]) / trials
    assert abs(share - 0.05) < 4 * math.sqrt(0.05 * 0.95 / trials)
    assert found[f"no effect shown (n = {seeds})"] == trials - found["helps"] - found["hurts"]


def test_an_effect_of_three_spreads_is_found_with_five_seeds() -> None:
    generator = random.Random(0)
    found = Counter(verdict([generator.gauss(3, 1) for _ in range(SEEDS)]) for _ in range(500))
    assert found["helps"] > 450
    assert found["hurts"] == 0
