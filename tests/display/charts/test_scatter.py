"""Scatter charts: points by keyboard, names that don't overlap, and the frontier."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdkit.display.charts import Mark, scatter_chart
from tests.fixtures.svg import SVG, VALUES, parsed, points, words


def spot(point: ElementTree.Element) -> tuple[float, float]:
    return float(point[1].get("cx", "")), float(point[1].get("cy", ""))


@pytest.mark.slow
@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=60), VALUES, VALUES), max_size=40))
def test_a_scatter_chart_of_any_values_is_valid(drawn: list[tuple[str, float | None, float | None]]) -> None:
    parsed(scatter_chart([Mark(name, x, y, name) for name, x, y in drawn], "<b>&", "x", "y"))


def test_points_fall_where_their_values_are() -> None:
    found = points(scatter_chart([Mark("a", 1, 0.5, "a"), Mark("b", 2, 0.6, "b"), Mark("c", 3, 0.7, "c")], "t", "x", "y"))
    (ax, ay), (bx, by), (cx, cy) = map(spot, found)
    assert bx - ax == pytest.approx(cx - bx, abs=0.2)
    assert bx > ax
    assert ay - by == pytest.approx(by - cy, abs=0.2)
    assert by < ay


def test_every_point_is_reached_by_keyboard_and_named_and_no_image_holds_it() -> None:
    marks = [Mark(f"@{index}", 1000.0 + index % 7, 0.9, f"@{index}: all about it & <more>") for index in range(200)]
    root = parsed(scatter_chart(marks, "t", "size", "accuracy"))
    assert root.get("role") == "group"
    assert root.get("aria-label", "").startswith("t. 200 points")
    listed = [each for each in root if each.get("role") == "list"]
    assert [each.get("role") for each in listed[0]] == ["listitem"] * 200
    assert all(each.get("tabindex") == "0" and each.get("aria-label") == each.findtext(f"{SVG}title") for each in listed[0])
    assert [each.get("aria-label") for each in listed[0]] == [mark.description for mark in marks]
    # all else is only seen
    assert [each.get("aria-hidden") for each in root if each is not listed[0]] == ["true"]
    assert ":focus .kd-ring" in "".join(root.itertext())


def test_names_do_not_run_into_each_other_and_the_first_has_the_first_right() -> None:
    marks = [Mark(f"@version-{index}", 100 + index % 14, 0.5 + (index * 37 % 100) / 100, "") for index in range(100)]
    found = points(scatter_chart(marks, "t", "x", "y", width=560))
    texts = [each.find(f"{SVG}text") for each in found]
    shown = [(float(each.get("x", "")), float(each.get("y", "")), 6.2 * len(each.text or "")) for each in texts if each is not None and each.get("class") is None]
    assert 5 < len(shown) < 100
    assert texts[0] is not None
    assert texts[0].get("class") is None
    assert all(x >= 0 and x + wide <= 560 for x, _, wide in shown)
    for index, (x, y, wide) in enumerate(shown):
        for ox, oy, other in shown[:index]:
            assert x + wide <= ox or ox + other <= x or abs(y - oy) >= 10, (x, y, ox, oy)


def test_points_of_one_place_are_all_there_and_one_of_them_is_named() -> None:
    found = points(scatter_chart([Mark("a", 1, 1, "a"), Mark("b", 1, 1, "b"), Mark("c", 1, None, "c"), Mark("d", math.nan, 1, "d")], "t", "x", "y"))
    assert [each.get("aria-label") for each in found] == ["a", "b"]
    assert len(points(scatter_chart([Mark("a", 1, 1, "a")], "t", "x", "y"))) == 1
    assert points(scatter_chart([], "t", "x", "y")) == []


def test_groups_differ_in_their_markers_and_only_those_that_occur_are_explained() -> None:
    chart = scatter_chart([Mark("a", 1, 1, "a", 0), Mark("b", 2, 2, "b", 2)], "t", "x", "y", ["best", "behind", "simulated"])
    shapes = [re.sub(r"^M[\d.]+ [\d.]+", "", each.find(f"{SVG}path").get("d", "")) for each in points(chart)]  # type: ignore[union-attr]
    assert len(set(shapes)) == 2
    assert {"best", "simulated"} <= set(words(chart))
    assert "behind" not in words(chart)


def test_the_frontier_is_the_stairs_of_what_is_reached() -> None:
    marks = [Mark("a", 1, 0.5, "a"), Mark("b", 2, 0.6, "b"), Mark("c", 4, 0.9, "c")]
    chart = scatter_chart(marks, "t", "x", "y", frontier=[(1, 0.5), (2, 0.6), (4, 0.9)])
    path = next(each.get("d", "") for each in parsed(chart).iter(f"{SVG}path") if each.get("stroke-dasharray") == "5 3")
    (ax, ay), (bx, by), (cx, cy) = map(spot, points(chart))
    assert [float(each) for each in re.findall(r"[\d.]+", path)] == [ax, ay, bx, by, cx, cy]
    assert re.sub(r"[\d. ]+", "", path) == "MHVHV"


def test_a_wide_axis_is_logarithmic_and_says_so() -> None:
    chart = scatter_chart([Mark("a", 10, 0.5, "a"), Mark("b", 1000, 0.5, "b"), Mark("c", 100_000, 0.5, "c")], "t", "size", "y", units=("B", ""))
    ax, bx, cx = (spot(each)[0] for each in points(chart))
    assert bx - ax == pytest.approx(cx - bx, abs=0.2)
    assert "t (log scale)" in words(chart)
    assert "100 kB" in words(chart)
    assert "Log scale: size" in parsed(chart).get("aria-label", "")
