"""Line charts: valid SVG for any values, gaps, and thinning."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdkit.display.charts import describe_lines, line_chart
from tests.fixtures.svg import SVG, VALUES, parsed, words


def lines_of(chart: str) -> list[ElementTree.Element]:
    """The drawn lines, without axes, markers and the legend's samples."""
    return [path for path in parsed(chart).iter(f"{SVG}path") if path.get("stroke-width") == "1.8" and not re.fullmatch(r"M[\d. ]+h28", path.get("d", ""))]


def points_of(path: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.get("d", ""))]


@pytest.mark.slow
@given(
    st.dictionaries(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=60), st.lists(VALUES, max_size=30), max_size=9),
    st.sampled_from([None, True, False]),
)
def test_a_line_chart_of_any_values_is_valid(values: dict[str, list[float | None]], log: bool | None) -> None:
    parsed(line_chart({name: list(enumerate(each)) for name, each in values.items()}, "<b>&", log=log))


def test_a_line_falls_where_its_values_do_and_spans_the_axis() -> None:
    points = points_of(lines_of(line_chart({"loss": [(0, 4.0), (5, 2.0), (10, 1.0)]}, "Loss", width=400))[0])
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert points[1][0] == pytest.approx((points[0][0] + points[2][0]) / 2, abs=0.1)
    assert points[0][1] < points[1][1] < points[2][1]
    assert (points[2][1] - points[1][1]) * 2 == pytest.approx(points[1][1] - points[0][1], abs=0.3)


def test_the_scale_is_logarithmic_where_the_range_asks_and_all_is_above_zero() -> None:
    wide = line_chart({"a": [(0, 1000.0), (1, 10.0), (2, 0.1)]}, "t")
    ys = [y for _, y in points_of(lines_of(wide)[0])]
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.3)
    assert "t (log scale)" in words(wide)
    for narrow in ([10.0, 1.0, 0.2], [1000.0, 1.0, 0.0], [1000.0, -1.0, 0.1]):
        assert not any("log" in word for word in words(line_chart({"a": list(enumerate(narrow))}, "t")))


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_a_missing_value_leaves_a_gap(missing: float | None) -> None:
    path = lines_of(line_chart({"a": [(0, 1.0), (1, 2.0), (2, missing), (3, 3.0), (4, 2.0)]}, "t"))[0].get("d", "")
    assert path.count("M") == 2
    assert path.count("L") == 2


def test_a_single_point_is_visible_and_an_empty_chart_has_a_message() -> None:
    one = parsed(line_chart({"a": [(7, 2.0)]}, "t"))
    assert any("a3 3" in path.get("d", "") for path in one.iter(f"{SVG}path"))
    assert "nothing to draw" in words(line_chart({}, "t"))
    assert "nothing to draw" in words(line_chart({"a": [(1, math.nan)]}, "t"))


@pytest.mark.slow
@pytest.mark.parametrize("log", [True, False])
def test_a_thousand_points_stay_small_and_lose_neither_end_nor_peak(log: bool) -> None:
    values = [1.0 + (index == 617) * 50 - (index == 311) * 0.9 for index in range(100_000)]
    long = line_chart({"a": list(enumerate(values))}, "t", log=log)
    assert len(long) < 12_000
    ys = [y for _, y in points_of(lines_of(long)[0])]
    few = [y for _, y in points_of(lines_of(line_chart({"a": [(0, 1.0), (1, 51.0), (2, 0.1), (99_999, 1.0)]}, "t", log=log))[0])]
    assert [ys[0], min(ys), max(ys), ys[-1]] == pytest.approx([few[0], min(few), max(few), few[-1]])


def test_no_two_lines_differ_by_colour_alone() -> None:
    chart = line_chart({f"line {index}": [(0, index), (1, index)] for index in range(20)}, "t")
    drawn = [(line.get("stroke-dasharray"), line.get("style")) for line in lines_of(chart)]
    markers = [re.sub(r"^M[\d.]+ [\d.]+", "", path.get("d", "")) for path in parsed(chart).iter(f"{SVG}path") if "z" in path.get("d", "")]
    first = [markers[index * 2] for index in range(20)]
    assert len(set(drawn)) == 20
    assert len({(dash, marker) for (dash, _), marker in zip(drawn, first, strict=True)}) == 20


def test_the_description_of_lines_skips_missing_values() -> None:
    assert describe_lines({"a": [(0, math.nan), (1, 3.0), (2, None)]}) == "a 3 -> 3"
