"""Bar and row charts: valid SVG for any values, and lengths in proportion."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdkit.display.charts import bar_chart, row_chart
from tests.fixtures.svg import SVG, VALUES, parsed, words


def test_bars_are_as_high_as_their_numbers() -> None:
    root = parsed(bar_chart({"a": 2, "b": 4, "c": 0}, "t", "over"))
    heights = [float(bar.get("height", "")) for bar in root.iter(f"{SVG}rect")]
    assert heights[1] == pytest.approx(2 * heights[0])
    assert heights[2] == 0
    assert parsed(bar_chart({}, "t")) is not None


def rectangles(chart: str) -> list[dict[str, float]]:
    return [{name: float(each.get(name, "")) for name in ("x", "y", "width", "height")} for each in parsed(chart).iter(f"{SVG}rect")]


@pytest.mark.slow
@given(st.dictionaries(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=60), st.tuples(VALUES, VALUES), max_size=40))
def test_a_row_chart_of_any_values_is_valid(rows: dict[str, tuple[float | None, float | None]]) -> None:
    parsed(row_chart(rows, "<b>&", ["one", "<two>"], "B"))


def test_rows_are_as_long_as_their_numbers_and_negative_ones_go_to_the_left() -> None:
    chart = row_chart({"a": [2], "b": [4], "c": [-1], "d": [0], "e": [None], "f": [math.nan]}, "t")
    a, b, c, d = rectangles(chart)
    assert b["width"] == pytest.approx(2 * a["width"], abs=0.2)
    assert a["width"] == pytest.approx(2 * c["width"], abs=0.2)
    assert d["width"] == 0
    assert a["x"] == b["x"] == d["x"] == pytest.approx(c["x"] + c["width"], abs=0.1)
    assert words(chart).count("n/a") == 1
    assert words(chart).count("nan") == 1


def test_rows_stay_inside_the_picture_and_above_each_other() -> None:
    name = "bert.encoder.layer.11.attention.output.dense"
    chart = row_chart({f"{name}.{index}": [index - 20.0, 1e6] for index in range(40)}, "t", ["one", "two"], width=480)
    bars = rectangles(chart)[:80]
    assert all(bar["x"] >= 0 and bar["x"] + bar["width"] <= 480 for bar in bars)
    assert all(above["y"] + above["height"] <= below["y"] for above, below in itertools.pairwise(bars))
    assert "and 20 more" in parsed(chart).get("aria-label", "")
    assert parsed(chart).find(f"{SVG}text/{SVG}title") is not None


def test_series_of_rows_differ_in_filling_and_dash_too() -> None:
    chart = row_chart({"a": [1, 1, 1, 1]}, "t", ["w", "x", "y", "z"])
    bars = list(parsed(chart).iter(f"{SVG}rect"))[:4]
    looks = {(re.search("fill-opacity:([^;]+)", bar.get("style", ""))[1], bar.get("stroke-dasharray")) for bar in bars}  # type: ignore[index]
    assert len(looks) == 4
    assert {"w", "x", "y", "z"} <= set(words(chart))


def test_equal_rows_are_equally_long_and_an_empty_chart_has_a_message() -> None:
    assert len({bar["width"] for bar in rectangles(row_chart({key: [0.3] for key in "abc"}, "t"))}) == 1
    assert "nothing to draw" in parsed(row_chart({}, "t")).get("aria-label", "")
