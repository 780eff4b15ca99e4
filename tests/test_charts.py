"""Charts: whole SVG whatever is drawn, nothing told by colour alone, and words for those who don't see it."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdkit.charts import COLOURS, Mark, bar_chart, heat_map, histogram, line_chart, row_chart, scatter_chart, told
from kdkit.curve import Curve

SVG = "{http://www.w3.org/2000/svg}"
VALUES = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))


def parsed(chart: str) -> ElementTree.Element:
    """The chart as XML; no coordinate in it may be nan or infinite, and it stands on one line."""
    assert "\n" not in chart
    root = ElementTree.fromstring(chart)
    for element in root.iter():
        for name in ("d", "x", "y", "width", "height", "viewBox", "transform"):
            assert not re.search("nan|inf", element.get(name, "")), (name, element.get(name))
    return root


def lines_of(chart: str) -> list[ElementTree.Element]:
    """The drawn lines, without axes, markers and the legend's samples."""
    return [path for path in parsed(chart).iter(f"{SVG}path") if path.get("stroke-width") == "1.8" and not re.fullmatch(r"M[\d. ]+h28", path.get("d", ""))]


def points_of(path: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.get("d", ""))]


def words(chart: str) -> list[str]:
    return [text.text or "" for text in parsed(chart).iter(f"{SVG}text")]


@given(
    st.dictionaries(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=60), st.lists(VALUES, max_size=30), max_size=9),
    st.sampled_from([None, True, False]),
)
def test_whatever_is_drawn_is_whole(values: dict[str, list[float | None]], log: bool | None) -> None:
    parsed(line_chart({name: list(enumerate(each)) for name, each in values.items()}, "<b>&", log=log))


@given(st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=1, max_size=4))
def test_a_heat_map_of_anything_is_whole(cells: list[list[float | None]]) -> None:
    clean = [[None if cell is None or not math.isfinite(cell) else abs(cell) for cell in row] for row in cells]
    for given_cells in (clean, cells):
        parsed(heat_map(given_cells, [f"<{index}>" for index in range(len(cells))], ["a", "b&", "c" * 99], "t", "down", "across"))


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


def test_one_point_is_seen_and_none_is_said() -> None:
    one = parsed(line_chart({"a": [(7, 2.0)]}, "t"))
    assert any("a3 3" in path.get("d", "") for path in one.iter(f"{SVG}path"))
    assert "nothing to draw" in words(line_chart({}, "t"))
    assert "nothing to draw" in words(line_chart({"a": [(1, math.nan)]}, "t"))


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


def _luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", COLOURS)
def test_lines_stand_out_from_a_light_and_from_a_dark_page(colour: str) -> None:
    assert 1.05 / (_luminance(colour) + 0.05) >= 3
    assert (_luminance(colour) + 0.05) / (_luminance("#111111") + 0.05) >= 3


def test_text_takes_the_colour_of_the_page() -> None:
    for chart in (line_chart({"a": [(0, 1), (1, 2)]}, "t"), heat_map([[1]], ["a"], ["a"], "t"), bar_chart({"a": 1}, "t")):
        assert "fill:currentColor" in parsed(chart).get("style", "")
        assert not any(text.get("fill") for text in parsed(chart).iter(f"{SVG}text"))


def test_a_screen_reader_is_told_what_the_picture_shows() -> None:
    root = parsed(line_chart({"loss": [(1, 2.0), (9, 0.5)]}, "Loss & <co>"))
    assert root.get("role") == "img"
    assert root.get("aria-label") == root.findtext(f"{SVG}desc") == "Loss & <co>. Over step 1 to 9: loss 2 -> 0.5."


def test_a_long_name_shows_both_ends_and_is_whole_in_the_tooltip() -> None:
    name = "bert.encoder.layer.11.attention.output.dense"
    legend = parsed(line_chart({name: [(0, 1), (1, 2)]}, "t")).findall(f"{SVG}text")[-1]
    assert legend.findtext(f"{SVG}title") == name
    assert "".join(legend.itertext()).removeprefix(name) == "bert.encoder.l…on.output.dense"


def test_cells_hold_their_numbers_and_the_larger_is_the_darker() -> None:
    root = parsed(heat_map([[30, 1], [0, 12_345]], ["cat", "dog"], ["cat", "dog"], "Decisions", "teacher", "student"))
    said = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert {"30", "1", "12.3 k", "cat", "dog", "teacher", "student"} <= set(said)
    cells = list(root.iter(f"{SVG}rect"))
    shades = [float(re.search(r"fill-opacity:([\d.]+)", cell.get("style", ""))[1]) for cell in cells]  # type: ignore[index]
    assert shades[2] == 0 < shades[1] < shades[0] < shades[3] <= 0.6
    assert cells[1].findtext(f"{SVG}title") == "teacher cat, student dog: 1"


def test_bars_are_as_high_as_their_numbers() -> None:
    root = parsed(bar_chart({"a": 2, "b": 4, "c": 0}, "t", "over"))
    heights = [float(bar.get("height", "")) for bar in root.iter(f"{SVG}rect")]
    assert heights[1] == pytest.approx(2 * heights[0])
    assert heights[2] == 0
    assert parsed(bar_chart({}, "t")) is not None


def rectangles(chart: str) -> list[dict[str, float]]:
    return [{name: float(each.get(name, "")) for name in ("x", "y", "width", "height")} for each in parsed(chart).iter(f"{SVG}rect")]


@given(st.dictionaries(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=60), st.tuples(VALUES, VALUES), max_size=40))
def test_rows_of_anything_are_whole(rows: dict[str, tuple[float | None, float | None]]) -> None:
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


def test_equal_rows_are_equally_long_and_none_are_said() -> None:
    assert len({bar["width"] for bar in rectangles(row_chart({key: [0.3] for key in "abc"}, "t"))}) == 1
    assert "nothing to draw" in parsed(row_chart({}, "t")).get("aria-label", "")


def points(chart: str) -> list[ElementTree.Element]:
    return [each for each in parsed(chart).iter(f"{SVG}g") if each.get("role") == "listitem"]


def spot(point: ElementTree.Element) -> tuple[float, float]:
    return float(point[1].get("cx", "")), float(point[1].get("cy", ""))


@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=60), VALUES, VALUES), max_size=40))
def test_a_scatter_of_anything_is_whole(drawn: list[tuple[str, float | None, float | None]]) -> None:
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
    assert all(each.get("tabindex") == "0" and each.get("aria-label") == each.findtext(f"{SVG}title") == mark.said for each, mark in zip(listed[0], marks, strict=True))
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


@given(st.lists(VALUES, max_size=20), st.sampled_from([None, True, False]))
def test_a_histogram_of_anything_is_whole(values: list[float | None], log: bool | None) -> None:
    shares = [abs(value) if value is not None and math.isfinite(value) else value for value in values]
    parsed(histogram(list(range(len(shares) + 1)), {"a": shares, "<b>": shares[::-1]}, "t", log=log))  # type: ignore[dict-item]


def test_an_outline_is_as_high_as_its_shares() -> None:
    chart = histogram([0, 1, 2, 3], {"a": [0.2, 0.4, 0.0]}, "t", log=False)
    path = next(each.get("d", "") for each in parsed(chart).iter(f"{SVG}path") if each.get("stroke-width") == "1.5")
    floor, *tops = [float(each) for each in (re.findall(r"M[\d.]+ ([\d.]+)", path) + re.findall(r"V([\d.]+)", path))]
    assert floor - tops[1] == pytest.approx(2 * (floor - tops[0]), abs=0.3)
    assert tops[2] == tops[3] == floor


def test_a_peak_that_would_press_the_rest_flat_makes_the_axis_logarithmic() -> None:
    flat, peaked = [0.1] * 10, [0.001] * 9 + [0.991]
    assert not any("log" in word for word in words(histogram(list(range(11)), {"a": flat}, "t")))
    assert "t (log scale)" in words(histogram(list(range(11)), {"a": flat, "b": peaked}, "t"))


def test_outlines_differ_in_dash_and_marker_too() -> None:
    root = parsed(histogram([0, 1, 2], {name: [0.5, 0.5] for name in "abcd"}, "t"))
    assert len({each.get("stroke-dasharray") for each in root.iter(f"{SVG}path") if each.get("stroke-width") == "1.5"}) == 4
    assert "a, most (0.5) from 0 to 1" in root.get("aria-label", "")


def test_ticks_have_as_many_digits_as_tell_them_apart() -> None:
    for low, high in ((0.98712, 0.98719), (1_000_100, 1_000_900), (0.1, 0.9), (5, 5)):
        chart = line_chart({"a": [(0, low), (1, high)]}, "t")
        ticks = [word for word in words(chart)[1:] if re.match(r"[\d.]", word)]
        assert len(set(ticks[:-2])) == len(ticks[:-2])


def test_lines_in_words_pass_over_what_is_missing() -> None:
    assert told({"a": [(0, math.nan), (1, 3.0), (2, None)]}) == "a 3 -> 3"


def test_a_curve_keeps_validation_apart_and_drops_the_loss_that_says_nothing_new() -> None:
    one = Curve.of([(1, {"loss": 2.0, "label": 2.0}), (2, {"loss": 1.0, "label": 1.0})])
    assert repr(one) == "curve over 2 steps: label 2 -> 1"
    two = Curve.of([(1, {"loss": 2.0, "label": 1.0, "learning_rate": 9.0}), (2, {"loss": 1.0, "label": 1.0, "validation_accuracy": 0.5})])
    assert repr(two) == "curve over 2 steps: loss 2 -> 1, label 1 -> 1, validation_accuracy 0.5 -> 0.5"
    assert two._repr_html_().count("<svg") == 2
    assert repr(Curve({})) == "curve over 0 steps: nothing"
    assert Curve({})._repr_html_() == ""
