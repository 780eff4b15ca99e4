"""Tables as text to copy."""

import csv
import io
import re

from hypothesis import given
from hypothesis import strategies as st

from kdkit.display.table import Table
from kdkit.display.table_text import plain_text, write_csv, write_latex, write_markdown

cells = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('|\\&%$#_{}~^",\n=+-@'), max_size=12)
grids = st.lists(st.tuples(cells, cells), min_size=1, max_size=4)


@given(grids)
def test_csv_reads_back_as_its_cells_and_no_cell_is_a_formula(rows):
    read = list(csv.reader(io.StringIO(write_csv(["one", "two"], rows) + "\n", newline="")))
    assert read == [["one", "two"], *([plain_text(cell) for cell in row] for row in rows)]
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in read for cell in row)


@given(grids)
def test_each_markdown_line_has_the_same_number_of_unescaped_pipes(rows):
    lines = write_markdown(Table(["one", "two"], rows)).split("\n")
    assert {re.sub(r"\\.", "", line).count("|") for line in lines} == {3}
    assert len(lines) == len(rows) + 2


@given(grids)
def test_each_latex_row_has_one_unescaped_ampersand_and_no_comment(rows):
    lines = write_latex(Table(["one", "two"], rows)).split("\n")[2:-2]
    plain = [re.sub(r"\\[^a-z]", "", line) for line in lines if line != r"\hline"]
    assert {line.count("&") for line in plain} == {1}
    assert not any("%" in line or "#" in line or "$" in line for line in plain)
