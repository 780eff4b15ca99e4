"""Heat maps: valid SVG for any values, and numbers in the cells."""

from __future__ import annotations

import math
import re

from hypothesis import given
from hypothesis import strategies as st

from kdkit.display.charts import heat_map
from tests.fixtures.svg import SVG, VALUES, parsed


@given(st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=1, max_size=4))
def test_a_heat_map_of_any_values_is_valid(cells: list[list[float | None]]) -> None:
    clean = [[None if cell is None or not math.isfinite(cell) else abs(cell) for cell in row] for row in cells]
    for given_cells in (clean, cells):
        parsed(heat_map(given_cells, [f"<{index}>" for index in range(len(cells))], ["a", "b&", "c" * 99], "t", "down", "across"))


def test_cells_hold_their_numbers_and_the_larger_is_the_darker() -> None:
    root = parsed(heat_map([[30, 1], [0, 12_345]], ["cat", "dog"], ["cat", "dog"], "Decisions", "teacher", "student"))
    stated = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert {"30", "1", "12.3 k", "cat", "dog", "teacher", "student"} <= set(stated)
    cells = list(root.iter(f"{SVG}rect"))
    shades = [float(re.search(r"fill-opacity:([\d.]+)", cell.get("style", ""))[1]) for cell in cells]  # type: ignore[index]
    assert shades[2] == 0 < shades[1] < shades[0] < shades[3] <= 0.6
    assert cells[1].findtext(f"{SVG}title") == "teacher cat, student dog: 1"
