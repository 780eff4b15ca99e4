"""What all charts share: colours, ticks, names and descriptions for screen readers."""

from __future__ import annotations

import re

import pytest

from kdkit.display.charts import COLOURS, bar_chart, heat_map, line_chart
from tests.fixtures.svg import SVG, parsed, words


def _luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", COLOURS)
def test_lines_contrast_with_a_light_and_with_a_dark_page(colour: str) -> None:
    assert 1.05 / (_luminance(colour) + 0.05) >= 3
    assert (_luminance(colour) + 0.05) / (_luminance("#111111") + 0.05) >= 3


def test_text_takes_the_colour_of_the_page() -> None:
    for chart in (line_chart({"a": [(0, 1), (1, 2)]}, "t"), heat_map([[1]], ["a"], ["a"], "t"), bar_chart({"a": 1}, "t")):
        assert "fill:currentColor" in parsed(chart).get("style", "")
        assert not any(text.get("fill") for text in parsed(chart).iter(f"{SVG}text"))


def test_a_screen_reader_gets_a_description_of_the_chart() -> None:
    root = parsed(line_chart({"loss": [(1, 2.0), (9, 0.5)]}, "Loss & <co>"))
    assert root.get("role") == "img"
    assert root.get("aria-label") == root.findtext(f"{SVG}desc") == "Loss & <co>. Over step 1 to 9: loss 2 -> 0.5."


def test_a_long_name_shows_both_ends_and_is_complete_in_the_tooltip() -> None:
    name = "bert.encoder.layer.11.attention.output.dense"
    legend = parsed(line_chart({name: [(0, 1), (1, 2)]}, "t")).findall(f"{SVG}text")[-1]
    assert legend.findtext(f"{SVG}title") == name
    assert "".join(legend.itertext()).removeprefix(name) == "bert.encoder.l…on.output.dense"


def test_ticks_have_as_many_digits_as_distinguish_them() -> None:
    for low, high in ((0.98712, 0.98719), (1_000_100, 1_000_900), (0.1, 0.9), (5, 5)):
        chart = line_chart({"a": [(0, low), (1, high)]}, "t")
        ticks = [word for word in words(chart)[1:] if re.match(r"[\d.]", word)]
        assert len(set(ticks[:-2])) == len(ticks[:-2])
