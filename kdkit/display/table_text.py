"""Tables as text to copy: Markdown, LaTeX and CSV, each with its own escapes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from kdkit.display.table import Table

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "µ": r"\textmu{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}
_MARKDOWN = {sign: "\\" + sign for sign in "\\|`*_<>[]&~"}
_FORMULA = ("=", "+", "-", "@")


class TableText(str):
    """A text that a cell shows as it is, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def write_markdown(table: Table) -> TableText:
    r"""The table in Markdown, with columns of numbers aligned to the right.

    >>> write_markdown(Table(["line", "size"], [["a|b", 2]]))
    | line | size |
    | :--- | ---: |
    | a\|b | 2 |
    """
    head, *rows = ([_escape(cell, _MARKDOWN) for cell in line] for line in table.lines())
    rule = ["---:" if right else ":---" for right in table.numeric()]
    return TableText("\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows)))


def write_latex(table: Table) -> TableText:
    r"""The table as a LaTeX `tabular`.

    >>> write_latex(Table(["line", "size"], [["50%", 2]]))
    \begin{tabular}{lr}
    \hline
    line & size \\
    \hline
    50\% & 2 \\
    \hline
    \end{tabular}
    """
    # "{}" keeps a cell that starts with "[" or "*" from being read as a part of the line break before it
    head, *rows = (" & ".join("{}" * cell.startswith(("[", "*")) + _escape(cell, _LATEX) for cell in line) + r" \\" for line in table.lines())
    columns = "".join("r" if right else "l" for right in table.numeric())
    return TableText("\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\hline", head, r"\hline", *rows, r"\hline", r"\end{tabular}"]))


def write_csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> TableText:
    """Values as CSV: numbers in full, None as an empty cell; a text that a spreadsheet would run as a formula starts with an apostrophe.

    >>> write_csv(["line", "size"], [["a, b", 0.5], ["=1+1", None]])
    line,size
    "a, b",0.5
    '=1+1,
    """
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([[plain_text(cell) for cell in row] for row in (head, *rows)])
    return TableText(written.getvalue().rstrip("\n"))


def plain_text(cell: Any) -> Any:
    """A cell of a CSV file, in which no text is a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip().startswith(_FORMULA) else cell


def _escape(text: str, signs: dict[str, str]) -> str:
    return "".join(signs.get(sign, sign) for sign in text)
