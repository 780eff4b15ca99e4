"""Tables and numbers, as text and as HTML."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdkit.display.table import Cell, Table, number, volatile


@dataclass(frozen=True)
class Figure:
    value: float

    def text(self) -> str:
        return number(self.value, "B")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "", "0"), (7, "", "7"), (999, "", "999"), (1000, "", "1 k"), (12_345, "", "12.3 k"), (1_048_576, "", "1.05 M"), (999_999, "", "1 M"),
        (370_123, "B", "370 kB"), (2.5e9, "B", "2.5 GB"), (17, "B", "17 B"),
        (3.2, "ms", "3.2 ms"), (0.0123, "ms", "12.3 µs"), (1800, "ms", "1.8 s"), (0.5, "s", "500 ms"), (0.9999, "ms", "1 ms"), (0, "ms", "0 s"),
        (0.0042, "J", "4.2 mJ"), (2500, "items/s", "2.5 k items/s"), (0.9512, "", "0.951"), (-0.25, "", "-0.25"), (1e-5, "", "1e-05"),
        (float("inf"), "ms", "inf ms"), (None, "B", "n/a"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits_and_a_prefix(value, unit, text):
    assert number(value, unit) == text


@given(st.floats(min_value=1, max_value=1e15), st.sampled_from(["", "B", "ms", "s", "J"]))
def test_a_number_read_back_is_the_number_to_three_digits(value, unit):
    digits, _, rest = number(value, unit).partition(" ")
    factor = {"ms": 1e-3}.get(unit, 1.0)
    prefix = rest.removesuffix({"ms": "s"}.get(unit, unit))
    assert float(digits) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "m": 1e-3}[prefix] == pytest.approx(value * factor, rel=5.1e-3)


def test_volatile_text_is_masked_only_while_the_environment_says_so(monkeypatch):
    monkeypatch.delenv("KDKIT_STABLE", raising=False)
    assert volatile("3 ms") == "3 ms"
    monkeypatch.setenv("KDKIT_STABLE", "1")
    assert volatile("3 ms") == "…"


def test_columns_line_up_and_those_of_figures_are_on_the_right():
    table = Table(["name", "size"], [["a", Figure(5)], ["longer", Figure(123_456)]], "two")
    assert repr(table) == "two\nname      size\na          5 B\nlonger  123 kB"


def test_no_line_ends_in_blanks_and_a_cell_is_always_one_line():
    text = repr(Table(["a", "b"], [["x\ny", ""], ["long cell", "z"]]))
    assert len(text.splitlines()) == 3
    assert all(line == line.rstrip() for line in text.splitlines())


def test_an_empty_table_shows_its_head():
    assert repr(Table(["a", "b"], [])) == "a  b"
    assert "<tbody></tbody>" in Table(["a"], [])._repr_html_()


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="1 cells and the head 2"):
        Table(["a", "b"], [["only"]])


def test_html_names_its_heads_and_escapes_what_it_shows():
    html = Table(["name", "size"], [["<b>&", Figure(5)]], "a < b")._repr_html_()
    assert html.count('scope="col"') == 2
    assert html.count('scope="row"') == 1
    assert "<caption" in html
    assert "a &lt; b" in html
    assert "&lt;b&gt;&amp;" in html


def test_html_sets_no_colours_so_that_both_themes_are_readable():
    html = Table(["name", "size"], [["x", 5]], "c")._repr_html_()
    assert not re.search(r"color|background|#[0-9a-f]{3}", html)


def test_a_cell_that_draws_itself_is_drawn_in_html():
    class Chart:
        def _repr_html_(self):
            return "<svg></svg>"

        def __str__(self):
            return "chart"

    table = Table(["run", "loss"], [["a", Chart()]])
    assert "<svg></svg>" in table._repr_html_()
    assert "chart" in repr(table)


@pytest.mark.slow
@given(st.lists(st.lists(st.text(), min_size=3, max_size=3), max_size=4))
def test_any_text_gives_well_formed_html(rows):
    open_tags: list[str] = []

    class Balanced(HTMLParser):
        def handle_starttag(self, tag, attrs):
            open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Balanced().feed(Table(["a", "b", "c"], rows)._repr_html_())
    assert not open_tags


def test_what_is_beside_a_figure_follows_in_text_and_is_small_in_html():
    table = Table(["version", "size"], [["@slim", Cell("10.5 kB", "x0.08 <")]])
    assert repr(table).splitlines()[1] == "@slim    10.5 kB (x0.08 <)"
    assert "10.5 kB<br><small>x0.08 &lt;</small>" in table._repr_html_()


def test_in_html_short_texts_are_never_broken_and_long_ones_not_within_an_option():
    html = Table(["version", "made by"], [["@slim *", "tune finetune --learning-rate 0.003"], ["@base", "use Net"]])._repr_html_()
    assert 'white-space: nowrap">@slim *</th>' in html
    assert '<td style="text-align: left">tune finetune <span style="white-space: nowrap">--learning-rate</span> 0.003</td>' in html
    assert 'white-space: nowrap">use Net</td>' in html
