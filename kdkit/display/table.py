"""Tables: how figures are shown, as short stable text and as accessible HTML."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite
from typing import Any

from kdkit.errors import printable, printable_lines

ABSENT = "n/a"
"""The text of a missing figure."""

_WHOLE = 24
"""Characters up to which a text in HTML is never broken; longer ones break between words, but not within an option."""

_LARGE = ("", "k", "M", "G", "T", "P")
_SMALL = ("", "m", "µ", "n", "p")
_SYMBOLS = ("", "B", "s", "J")
_DIVISIBLE = {"s": ("s", 1.0), "ms": ("s", 1e-3), "us": ("s", 1e-6), "J": ("J", 1.0), "mJ": ("J", 1e-3)}


def number(value: float | None, unit: str = "") -> str:
    """A figure in three significant digits, with a decimal prefix where it helps.

    Args:
        value: any number; None is "n/a".
        unit: such as "B", "ms", "J", "items/s"; of these, times and energies also go below one.

    >>> [number(12_345), number(1_048_576), number(370_123, "B"), number(3.2, "ms"), number(0.9512)]
    ['12.3 k', '1.05 M', '370 kB', '3.2 ms', '0.951']
    >>> [number(0.0123, "ms"), number(1800, "ms"), number(999.9), number(7, "B"), number(float("nan"))]
    ['12.3 µs', '1.8 s', '1 k', '7 B', 'nan']
    """
    if value is None:
        return ABSENT
    if not isfinite(value):
        return f"{value} {unit}".rstrip()
    base, factor = _DIVISIBLE.get(unit, (unit, 1.0))
    scaled, prefix = _scale(float(value) * factor, small=unit in _DIVISIBLE)
    gap = " " if prefix and base not in _SYMBOLS else ""
    return f"{scaled:.3g} {prefix}{gap}{base}".rstrip()


def _scale(value: float, small: bool) -> tuple[float, str]:
    """The value between 1 and 1000, as rounded to three digits, and the prefix that makes up for it."""
    value = float(f"{value:.3g}")
    step = 0
    while abs(value) >= 1000 and step < len(_LARGE) - 1:
        value, step = value / 1000, step + 1
    while small and 0 < abs(value) < 1 and step > 1 - len(_SMALL):
        value, step = float(f"{value * 1000:.3g}"), step - 1
    return value, _LARGE[step] if step >= 0 else _SMALL[-step]


def base_value(value: float, unit: str = "") -> float:
    """The number in its base unit: seconds, joules, bytes or a plain count.

    >>> base_value(3.2, "ms"), base_value(7, "B")
    (0.0032, 7)
    """
    factor = _DIVISIBLE.get(unit, (unit, 1.0))[1]
    return value if factor == 1 else value * factor


def base_unit(unit: str) -> str:
    """The unit of a `base_value`.

    >>> base_unit("ms"), base_unit("B")
    ('s', 'B')
    """
    return _DIVISIBLE.get(unit, (unit, 1.0))[0]


def volatile(text: str) -> str:
    """A text that differs from run to run (a time, a path): "…" while `KDKIT_STABLE=1`, so that notebooks compare."""
    return "…" if os.environ.get("KDKIT_STABLE") == "1" else text


@dataclass(frozen=True)
class Cell:
    """Text aligned like a number, with an optional second text: `beside` follows in parentheses, in HTML small and below.

    >>> Cell("10.5 kB", "x0.08").text()
    '10.5 kB (x0.08)'
    """

    value: str
    beside: str = ""

    def text(self) -> str:
        """The cell as plain text."""
        return f"{self.value} ({self.beside})" if self.beside else self.value

    def _repr_html_(self) -> str:
        return f"{escape(self.value)}<br><small>{escape(self.beside)}</small>" if self.beside else escape(self.value)


@dataclass(frozen=True)
class Table:
    """A head, rows of cells, and a caption.

    A cell is a string, a number, None, or an object with `text()` such as a `kdkit.measurement.report.Figure`. A column that holds no
    strings is aligned to the right.

    >>> Table(["version", "size"], [["@base", 1_048_576], ["@slim", None]], "versions")
    versions
    version    size
    @base    1.05 M
    @slim       n/a
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.head):
                raise ValueError(f"a row has {len(row)} cells and the head {len(self.head)}: {row!r}")

    def __repr__(self) -> str:
        lines = self.lines()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        numeric = self.numeric()
        pad = [[cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(line, widths, numeric, strict=True)] for line in lines]
        return "\n".join([*([printable_lines(self.caption)] if self.caption else []), *("  ".join(line).rstrip() for line in pad)])

    def _repr_html_(self) -> str:
        align = [' style="text-align: right"' if right else ' style="text-align: left"' for right in self.numeric()]
        caption = f'<caption style="caption-side: top; text-align: left">{escape(self.caption)}</caption>' if self.caption else ""
        head = "".join(f'<th scope="col"{style}>{escape(str(name))}</th>' for name, style in zip(self.head, align, strict=True))
        body = "".join(f"<tr>{self._html_row(row, align)}</tr>" for row in self.rows)
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _html_row(self, row: Sequence[Any], align: Sequence[str]) -> str:
        first, *rest = ((_html(cell), _whole(cell, style)) for cell, style in zip(row, align, strict=True))
        return f'<th scope="row"{first[1]}>{first[0]}</th>' + "".join(f"<td{style}>{cell}</td>" for cell, style in rest)

    def lines(self) -> list[list[str]]:
        """The head and the rows, each cell as text."""
        return [[_text(str(name)) for name in self.head], *([_text(cell) for cell in row] for row in self.rows)]

    def numeric(self) -> list[bool]:
        """For each column, whether it holds no strings, so that it is aligned to the right."""
        columns = [[cell for row in self.rows if (cell := row[index]) not in (None, "")] for index in range(len(self.head))]
        return [bool(column) and not any(isinstance(cell, str) for cell in column) for column in columns]


def _text(cell: Any) -> str:
    """A cell as one line of text; leading spaces are kept as indentation."""
    if cell is None or (isinstance(cell, (int, float)) and not isinstance(cell, bool)):
        return number(cell)
    text = str(cell.text() if hasattr(cell, "text") else cell)
    return " " * (len(text) - len(text.lstrip(" "))) + printable(" ".join(text.split()))


def _html(cell: Any) -> str:
    if hasattr(cell, "_repr_html_"):
        return cell._repr_html_()
    text = _text(cell)
    return escape(text) if len(text) <= _WHOLE else re.sub(r"(?<!\S)--?\w\S*", r'<span style="white-space: nowrap">\g<0></span>', escape(text))


def _whole(cell: Any, style: str) -> str:
    return f'{style[:-1]}; white-space: nowrap"' if len(_text(cell)) <= _WHOLE else style
