"""Charts: whole SVG whatever is drawn, nothing told by colour alone, and words for those who don't see it."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdkit.charts import COLOURS, bar_chart, heat_map, line_chart, told
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
