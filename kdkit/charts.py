"""Charts: pictures as SVG in one line of text, readable on a light and on a dark page, in print and to a screen reader.

Text and axes take the page's own colour; lines differ in dash and marker too, and cells hold their number, so that colour
never tells anything alone. A page may set `--kd-series-1` to `--kd-series-6` and `--kd-heat` to colours of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from kdkit.table import number

COLOURS = ("#3b82c4", "#d0661c", "#23916b", "#bd5396", "#8271cf", "#93801a")
"""Of lines, in order; each stands out from black and from white by 3 : 1 at least."""

_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4")
_POINTS = 240
"""A line of more is thinned to what the picture can show."""
_NAME = 30
"""Characters of a name that are shown; the whole of it is in the tooltip."""
_LETTER = 6.2
"""Width of a letter, in pixels, at the size of a chart's text."""
_LINE = 18
_HUGE = 1e150

Points = Sequence[tuple[float, float | None]]
"""(x, y) from left to right; a y of None, nan or infinity leaves a gap."""


def line_chart(series: Mapping[str, Points], title: str, across: str = "step", log: bool | None = None, width: int = 480, height: int = 190) -> str:
    """Lines over one axis, as SVG.

    Args:
        series: points by the name of their line.
        title: above the picture.
        across: what the x axis counts.
        log: whether the y axis is logarithmic; if not said, it is where all values are above 0 and span more than 1 : 100.
        width, height: in pixels, without the legend.

    >>> line_chart({"loss": [(1, 2.0), (2, 1.0)]}, "Loss").startswith('<svg role="img"')
    True
    """
    lines = {name: [(float(x), _finite(y)) for x, y in points] for name, points in series.items()}
    seen = [y for points in lines.values() for _, y in points if y is not None]
    steps = [x for points in lines.values() for x, _ in points]
    legend = _legend(list(lines), width)
    tall = height + _LINE * (1 + max((row for _, row in legend), default=-1))
    if not seen:
        return _svg(title, "There is nothing to draw.", width, 44, [_text(8, 34, "nothing to draw", "start")])
    log = all(y > 0 for y in seen) and max(seen) > 100 * min(seen) if log is None else log
    ys = _Scale.over([y for y in seen if y > 0 or not log], log, height - 30, 26)
    xs = _Scale(min(steps), max(steps), False, 8 + _LETTER * max(len(_tick(tick)) for tick in ys.ticks()), width - 14)
    body = [*_axes(xs, ys, across, width)]
    for index, points in enumerate(lines.values()):
        body += _line(index, [(xs.at(x), None if y is None or (log and y <= 0) else ys.at(y)) for x, y in _thinned(points)])
    for (name, (left, row)), index in zip(zip(lines, legend, strict=True), range(len(lines)), strict=True):
        body += _key(index, name, left, height + _LINE * row + 8)
    return _svg(title + (" (log scale)" if log else ""), f"Over {across} {_tick(min(steps))} to {_tick(max(steps))}: {told(series)}.", width, tall, body)


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
    top = max((_finite(cell) or 0.0 for row in cells for cell in row), default=0.0)
    side = 24.0
    cell_width = max(side, 8 + _LETTER * max((len(_tick(cell)) for row in cells for cell in row if cell), default=1))
    turned = any(len(_short(name)) * _LETTER > cell_width for name in columns)
    left = 14 + _LETTER * max(map(len, map(_short, rows)), default=0) + (16 if down else 0)
    above = 30 + (16 if across else 0) + (_LETTER * max(map(len, map(_short, columns)), default=0) if turned else 14)
    body = [_text(left, 40, across, "start")] if across else []
    if down:
        middle = above + len(rows) * side / 2
        body.append(f'<text x="12" y="{_n(middle)}" text-anchor="middle" transform="rotate(-90 12 {_n(middle)})">{escape(down)}</text>')
    for index, name in enumerate(columns):
        x = left + (index + 0.5) * cell_width
        spin = f' transform="rotate(-90 {_n(x + 4)} {_n(above - 6)})"' if turned else ""
        body.append(f'<text x="{_n(x + (4 if turned else 0))}" y="{_n(above - 6)}" text-anchor="{"start" if turned else "middle"}"{spin}>{_named(name)}</text>')
    for index, (name, row) in enumerate(zip(rows, cells, strict=True)):
        y = above + index * side
        body.append(f'<text x="{_n(left - 6)}" y="{_n(y + side / 2 + 4)}" text-anchor="end">{_named(name)}</text>')
        for at, cell in enumerate(row):
            body += _cell(left + at * cell_width, y, cell_width, side, _finite(cell), top, f"{down} {name}, {across} {columns[at]}".strip())
    width = max(left + len(columns) * cell_width + 10, 20 + _LETTER * len(title), left + _LETTER * len(across) + 10)
    return _svg(title, f"{len(rows)} rows, {len(columns)} columns.", round(width), round(above + len(rows) * side + 8), body)


def bar_chart(bars: Mapping[str, float], title: str, across: str = "", width: int = 480, height: int = 160) -> str:
    """Upright bars with their numbers on top, as SVG: a histogram, where the names are its ranges.

    >>> "7" in bar_chart({"0 to 0.5": 3, "0.5 to 1": 7}, "Agreement")
    True
    """
    top = max((value for value in bars.values() if _finite(value)), default=0.0) or 1.0
    step = (width - 16) / max(len(bars), 1)
    floor, body = height - 34, []
    for index, (name, value) in enumerate(bars.items()):
        tall = (floor - 44) * max(_finite(value) or 0.0, 0.0) / top
        x = 8 + index * step
        body.append(f'<rect x="{_n(x + step * 0.1)}" y="{_n(floor - tall)}" width="{_n(step * 0.8)}" height="{_n(tall)}" style="fill:{_colour(0)}"/>')
        body.append(_text(x + step / 2, floor - tall - 4, _tick(value), "middle"))
        body.append(_text(x + step / 2, floor + 14, name, "middle"))
    body.append(f'<path d="M8 {floor}H{width - 8}" stroke="currentColor" stroke-opacity=".5"/>')
    body += [_text(width / 2, height - 6, across, "middle")] if across else []
    return _svg(title, "; ".join(f"{name}: {_tick(value)}" for name, value in bars.items()) + ".", width, height, body)


def told(series: Mapping[str, Points]) -> str:
    """Each line in words: its first value and its last.

    >>> told({"loss": [(1, 2.0), (2, None), (3, 0.5)], "empty": []})
    'loss 2 -> 0.5, empty nothing'
    """
    lines = {name: [y for _, y in points if _finite(y) is not None] for name, points in series.items()}
    return ", ".join(f"{name} {f'{seen[0]:.3g} -> {seen[-1]:.3g}' if seen else 'nothing'}" for name, seen in lines.items())


# the parts of a picture


class _Scale:
    """Values on an axis, to pixels."""

    def __init__(self, low: float, high: float, log: bool, start: float, end: float):
        self.low, self.high, self.log, self.start, self.end = low, high, log, start, end

    @classmethod
    def over(cls, values: Sequence[float], log: bool, start: float, end: float) -> _Scale:
        """With room for all values; a constant stands in the middle."""
        low, high = min(values, default=1.0), max(values, default=1.0)
        if log:
            spare = (high / low) ** 0.04 if high > low else 3.0
            return cls(low / spare, high * spare, log, start, end)
        spare = (high - low) * 0.04 or abs(low) * 0.1 or 1.0
        # a loss never goes below zero, and a picture of it should not either
        return cls(low - spare if low < 0 or low > 2 * spare else 0.0, high + spare, log, start, end)

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (math.log(each) for each in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Three to six round values."""
        if self.low >= self.high:
            return [self.low]
        if self.log and self.high >= 10 * self.low:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            every = max(1, math.ceil((last - first + 1) / 6))
            powers = [10.0**power for power in range(first, last + 1, every)]
            return (
                powers
                if len(powers) > 1
                else [mantissa * 10.0**power for power in range(first - 1, last + 1) for mantissa in (1, 2, 5) if self.low <= mantissa * 10.0**power <= self.high]
            )
        rough = (self.high - self.low) / 4
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next((unit * factor for factor in (1, 2, 2.5, 5) if unit * factor >= rough), unit * 10)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [step * index for index in range(first, min(last, first + 12) + 1)] or [self.low]


def _axes(xs: _Scale, ys: _Scale, across: str, width: int) -> Iterator[str]:
    for value in ys.ticks():
        y = ys.at(value)
        yield f'<path d="M{_n(xs.start)} {_n(y)}H{_n(xs.end)}" stroke="currentColor" stroke-opacity=".18"/>'
        yield _text(xs.start - 5, y + 4, _tick(value), "end")
    whole = [tick for tick in xs.ticks() if tick == round(tick)] or xs.ticks()
    for value in whole:
        yield _text(min(xs.at(value), width - _LETTER * len(_tick(value)) / 2 - 1), ys.start + 15, _tick(value), "middle")
    yield f'<path d="M{_n(xs.start)} {_n(ys.start)}H{_n(xs.end)}" stroke="currentColor" stroke-opacity=".5"/>'
    yield _text((xs.start + xs.end) / 2, ys.start + 28, across, "middle")


def _line(index: int, points: Sequence[tuple[float, float | None]]) -> Iterator[str]:
    path, pen = [], "M"
    for x, y in points:
        path += [f"{pen}{_n(x)} {_n(y)}"] if y is not None else []
        pen = "M" if y is None else "L"
    here = [(x, y) for x, y in points if y is not None]
    dash = f' stroke-dasharray="{_DASHES[index % len(_DASHES)]}"' if index % len(_DASHES) else ""
    yield f'<path d="{"".join(path)}" fill="none" stroke-width="1.8" stroke-linejoin="round"{dash} style="stroke:{_colour(index)}"/>'
    every = max(1, math.ceil(len(here) / 6))
    yield from (_marker(index, x, y) for x, y in [*here[:-1][::every], *here[-1:]])


def _marker(index: int, x: float, y: float) -> str:
    shapes = (
        "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0z",
        "m-3 -3h6v6h-6z",
        "m0 -4l4 7h-8z",
        "m0 -4l4 4l-4 4l-4 -4z",
        "m0 4l4 -7h-8z",
        "m-3.5 -1h2.5v-2.5h2v2.5h2.5v2h-2.5v2.5h-2v-2.5h-2.5z",
        "m-4 -1.5h8v3h-8z",
    )
    return f'<path d="M{_n(x)} {_n(y)}{shapes[index % len(shapes)]}" style="fill:{_colour(index)}"/>'


def _legend(names: Sequence[str], width: int) -> list[tuple[float, int]]:
    """Where each name stands: (left, row)."""
    places, left, row = [], 8.0, 0
    for name in names:
        wide = 50 + _LETTER * len(_short(name))
        if left > 8 and left + wide > width:
            left, row = 8.0, row + 1
        places.append((left, row))
        left += wide
    return places


def _key(index: int, name: str, left: float, y: float) -> Iterator[str]:
    dash = f' stroke-dasharray="{_DASHES[index % len(_DASHES)]}"' if index % len(_DASHES) else ""
    yield f'<path d="M{_n(left)} {_n(y)}h28" fill="none" stroke-width="1.8"{dash} style="stroke:{_colour(index)}"/>'
    yield _marker(index, left + 14, y)
    yield f'<text x="{_n(left + 33)}" y="{_n(y + 4)}">{_named(name)}</text>'


def _cell(x: float, y: float, width: float, height: float, value: float | None, top: float, where: str) -> Iterator[str]:
    # the root, so that one large number does not bleach the rest
    share = math.sqrt(max(value or 0.0, 0.0) / top) if top > 0 else 0.0
    yield (
        f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width - 1)}" height="{_n(height - 1)}" stroke="currentColor" stroke-opacity=".12" '
        f'style="fill:var(--kd-heat,{COLOURS[0]});fill-opacity:{0.06 + 0.52 * share if share > 0 else 0:.2f}"><title>{escape(where)}: {_tick(value)}</title></rect>'
    )
    if value:
        yield f'<text x="{_n(x + width / 2)}" y="{_n(y + height / 2 + 4)}" text-anchor="middle" pointer-events="none">{_tick(value)}</text>'


def _svg(title: str, description: str, width: int, height: int, body: Sequence[str]) -> str:
    label = escape(f"{title}. {description}")
    head = (
        f'<svg role="img" aria-label="{label}" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'style="max-width:100%;height:auto;font:11px system-ui,sans-serif;fill:currentColor">'
    )
    # the title is drawn, and not only told, so it needs no tooltip over the whole picture
    return f'{head}<desc>{label}</desc><text x="8" y="15" style="font-weight:600">{escape(title)}</text>{"".join(body)}</svg>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{escape(text)}</text>'


def _named(name: str) -> str:
    return escape(name) if _short(name) == name else f"<title>{escape(name)}</title>{escape(_short(name))}"


def _short(name: str) -> str:
    """Both ends of a long name, as layers' names differ at either."""
    return name if len(name) <= _NAME else f"{name[: _NAME // 2 - 1]}…{name[-_NAME // 2 :]}"


def _colour(index: int) -> str:
    at = index % len(COLOURS)
    return f"var(--kd-series-{at + 1},{COLOURS[at]})"


def _thinned(points: Sequence[tuple[float, float | None]]) -> Sequence[tuple[float, float | None]]:
    """No more points than can be told apart: of each run of neighbours the lowest and the highest, so that no peak is lost."""
    if len(points) <= _POINTS:
        return points
    size = math.ceil(2 * len(points) / (_POINTS - 2))
    kept = [points[0]]
    for start in range(1, len(points) - 1, size):
        run = points[start : min(start + size, len(points) - 1)]
        here = [point for point in run if point[1] is not None]
        kept += sorted({min(here, key=_height), max(here, key=_height)}) if here else run[:1]
    return [*kept, points[-1]]


def _height(point: tuple[float, float | None]) -> float:
    return point[1] or 0.0


def _finite(value: float | None) -> float | None:
    """None for what has no place on an axis; the very ends of what a float can hold are no places either."""
    if value is None or not abs(value) < _HUGE:
        return None
    return float(value) if abs(value) > 1 / _HUGE else 0.0


def _tick(value: float | None) -> str:
    return number(value)


def _n(pixel: float) -> str:
    return f"{pixel:.1f}".removesuffix(".0")
