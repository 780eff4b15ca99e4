"""Histograms: outlines in proportion to the shares."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdkit.display.charts import histogram
from tests.fixtures.svg import SVG, VALUES, parsed, words


@pytest.mark.slow
@given(st.lists(VALUES, max_size=20), st.sampled_from([None, True, False]))
def test_a_histogram_of_any_values_is_valid(values: list[float | None], log: bool | None) -> None:
    shares = [abs(value) if value is not None and math.isfinite(value) else value for value in values]
    parsed(histogram(list(range(len(shares) + 1)), {"a": shares, "<b>": shares[::-1]}, "t", log=log))  # type: ignore[dict-item]


def test_an_outline_is_as_high_as_its_shares() -> None:
    chart = histogram([0, 1, 2, 3], {"a": [0.2, 0.4, 0.0]}, "t", log=False)
    path = next(each.get("d", "") for each in parsed(chart).iter(f"{SVG}path") if each.get("stroke-width") == "1.5")
    floor, *tops = [float(each) for each in (re.findall(r"M[\d.]+ ([\d.]+)", path) + re.findall(r"V([\d.]+)", path))]
    assert floor - tops[1] == pytest.approx(2 * (floor - tops[0]), abs=0.3)
    assert tops[2] == tops[3] == floor


def test_a_peak_that_would_flatten_the_rest_makes_the_axis_logarithmic() -> None:
    flat, peaked = [0.1] * 10, [0.001] * 9 + [0.991]
    assert not any("log" in word for word in words(histogram(list(range(11)), {"a": flat}, "t")))
    assert "t (log scale)" in words(histogram(list(range(11)), {"a": flat, "b": peaked}, "t"))


def test_outlines_differ_in_dash_and_marker_too() -> None:
    root = parsed(histogram([0, 1, 2], {name: [0.5, 0.5] for name in "abcd"}, "t"))
    assert len({each.get("stroke-dasharray") for each in root.iter(f"{SVG}path") if each.get("stroke-width") == "1.5"}) == 4
    assert "a, most (0.5) from 0 to 1" in root.get("aria-label", "")
