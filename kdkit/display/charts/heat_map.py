"""Heat maps: numbers in a grid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from kdkit.display.charts.axes import COLOURS, LETTER, finite, named, pixel, short, svg, text
from kdkit.display.table import number


def heat_map(cells: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str], title: str, down: str = "", across: str = "") -> str:
    """Numbers in a grid, the larger the darker, as SVG; each cell holds its number.

    Args:
        cells: a row each of `rows`, a number each of `columns`, at least 0; None and 0 leave a cell empty.
        rows, columns: their names.
        title: above the picture.
        down, across: what the rows and the columns are.

    >>> "3" in heat_map([[3, 0], [1, None]], ["cat", "dog"], ["cat", "dog"], "Decisions")
    True
    """
    top = max((finite(cell) or 0.0 for row in cells for cell in row), default=0.0)
    side = 24.0
    cell_width = max(side, 8 + LETTER * max((len(number(cell)) for row in cells for cell in row if cell), default=1))
    turned = any(len(short(name)) * LETTER > cell_width for name in columns)
    left = 14 + LETTER * max(map(len, map(short, rows)), default=0) + (16 if down else 0)
    above = 30 + (16 if across else 0) + (LETTER * max(map(len, map(short, columns)), default=0) if turned else 14)
    body = [text(left, 40, across, "start")] if across else []
    if down:
        middle = above + len(rows) * side / 2
        body.append(f'<text x="12" y="{pixel(middle)}" text-anchor="middle" transform="rotate(-90 12 {pixel(middle)})">{escape(down)}</text>')
    for index, name in enumerate(columns):
        x = left + (index + 0.5) * cell_width
        spin = f' transform="rotate(-90 {pixel(x + 4)} {pixel(above - 6)})"' if turned else ""
        body.append(f'<text x="{pixel(x + (4 if turned else 0))}" y="{pixel(above - 6)}" text-anchor="{"start" if turned else "middle"}"{spin}>{named(name)}</text>')
    for index, (name, row) in enumerate(zip(rows, cells, strict=True)):
        y = above + index * side
        body.append(f'<text x="{pixel(left - 6)}" y="{pixel(y + side / 2 + 4)}" text-anchor="end">{named(name)}</text>')
        for at, cell in enumerate(row):
            body += _cell(left + at * cell_width, y, cell_width, side, finite(cell), top, f"{down} {name}, {across} {columns[at]}".strip())
    width = max(left + len(columns) * cell_width + 10, 20 + LETTER * len(title), left + LETTER * len(across) + 10)
    return svg(title, f"{len(rows)} rows, {len(columns)} columns.", round(width), round(above + len(rows) * side + 8), body)


def _cell(x: float, y: float, width: float, height: float, value: float | None, top: float, where: str) -> Iterator[str]:
    # the root, so that one large number does not bleach the rest
    share = math.sqrt(max(value or 0.0, 0.0) / top) if top > 0 else 0.0
    yield (
        f'<rect x="{pixel(x)}" y="{pixel(y)}" width="{pixel(width - 1)}" height="{pixel(height - 1)}" stroke="currentColor" stroke-opacity=".12" '
        f'style="fill:var(--kd-heat,{COLOURS[0]});fill-opacity:{0.06 + 0.52 * share if share > 0 else 0:.2f}"><title>{escape(where)}: {number(value)}</title></rect>'
    )
    if value:
        yield f'<text x="{pixel(x + width / 2)}" y="{pixel(y + height / 2 + 4)}" text-anchor="middle" pointer-events="none">{number(value)}</text>'
