"""Bars: upright ones, and lying ones for long names, several series and values on both sides of zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from kdkit.display.charts.axes import LETTER, LINE, colour, dash, finite, named, pixel, places, short, svg, text
from kdkit.display.table import number

_TOLD = 20
"""Up to this many bars, a screen reader reads each one."""
_THICK = 12


def bar_chart(bars: Mapping[str, float], title: str, across: str = "", width: int = 480, height: int = 160) -> str:
    """Upright bars with their numbers on top, as SVG: a histogram, where the names are its ranges.

    >>> "7" in bar_chart({"0 to 0.5": 3, "0.5 to 1": 7}, "Agreement")
    True
    """
    top = max((value for value in bars.values() if finite(value)), default=0.0) or 1.0
    step = (width - 16) / max(len(bars), 1)
    floor, body = height - 34, []
    for index, (name, value) in enumerate(bars.items()):
        tall = (floor - 44) * max(finite(value) or 0.0, 0.0) / top
        x = 8 + index * step
        body.append(f'<rect x="{pixel(x + step * 0.1)}" y="{pixel(floor - tall)}" width="{pixel(step * 0.8)}" height="{pixel(tall)}" style="fill:{colour(0)}"/>')
        body.append(text(x + step / 2, floor - tall - 4, number(value), "middle"))
        body.append(text(x + step / 2, floor + 14, name, "middle"))
    body.append(f'<path d="M8 {floor}H{width - 8}" stroke="currentColor" stroke-opacity=".5"/>')
    body += [text(width / 2, height - 6, across, "middle")] if across else []
    return svg(title, "; ".join(f"{name}: {number(value)}" for name, value in bars.items()) + ".", width, height, body)


def row_chart(rows: Mapping[str, Sequence[float | None]], title: str, series: Sequence[str] = ("",), unit: str = "", width: int = 480) -> str:
    """Lying bars, a row each of long names, with their numbers at their ends, as SVG.

    Args:
        rows: by name a number for each of `series`; negative ones go to the left, None and nan have no bar.
        title: above the picture.
        series: what a row's numbers are; several are distinguished by filling, outline and a legend.
        unit: of the numbers.

    >>> chart = row_chart({"encoder.layer.0": [0.25], "head": [-0.5]}, "Change")
    >>> "encoder.layer.0" in chart and "-0.5" in chart
    True
    """
    seen = [value for row in rows.values() for each in row if (value := finite(each)) is not None]
    low, high = min([0.0, *seen]), max([0.0, *seen])
    room = 8 + LETTER * max((len(number(value, unit)) for value in seen), default=3)
    left = 14 + LETTER * max((len(short(name)) for name in rows), default=0) + (room if low < 0 else 0)
    long = (width - room - left) / ((high - low) or 1.0)
    zero, step, top = left - low * long, len(series) * _THICK + 6, 26
    body = []
    for at, (name, row) in enumerate(rows.items()):
        y = top + at * step
        body.append(f'<text x="8" y="{pixel(y + (step - 6) / 2 + 4)}">{named(name)}</text>')
        for index, each in enumerate(row):
            where = f"{name}, {series[index]}" if series[index] else name
            body += _lying(index, zero, y + index * _THICK, finite(each), long, number(each, unit), where)
    floor = top + len(rows) * step
    body.append(f'<path d="M{pixel(zero)} {top - 3}V{pixel(floor - 3)}" stroke="currentColor" stroke-opacity=".5"/>')
    legend = places(series, width) if len(series) > 1 else []
    for index, (x, line) in enumerate(legend):
        body.append(_rectangle(index, x, floor + LINE * line + 2, 28, _THICK - 2))
        body.append(f'<text x="{pixel(x + 33)}" y="{pixel(floor + LINE * line + 11)}">{named(series[index])}</text>')
    told = [f"{name}: {', '.join(f'{label} {number(each, unit)}'.strip() for label, each in zip(series, row, strict=True))}" for name, row in rows.items()]
    more = [f"and {len(told) - _TOLD} more"] if len(told) > _TOLD else []
    height = floor + (LINE * (1 + legend[-1][1]) if legend else 0) + 4
    return svg(title, "; ".join([*told[:_TOLD], *more] or ["There is nothing to draw"]) + ".", width, height, body)


def _lying(index: int, zero: float, y: float, value: float | None, long: float, said: str, where: str) -> Iterator[str]:
    length = abs(value or 0.0) * long
    below = value is not None and value < 0
    if value is not None:
        yield _rectangle(index, zero - length if below else zero, y, length, _THICK - 2, f"<title>{escape(where)}: {escape(said)}</title>")
    yield text(zero - length - 4 if below else zero + length + 4, y + _THICK - 3, said, "end" if below else "start")


def _rectangle(index: int, x: float, y: float, width: float, height: float, inside: str = "") -> str:
    """The first series is filled, the others are outlined, each in a dash of its own."""
    filling = f"fill:{colour(index)};fill-opacity:{0.25 if index else 1};stroke:{colour(index)}"
    place = f'x="{pixel(x)}" y="{pixel(y)}" width="{pixel(width)}" height="{pixel(height)}"'
    return f'<rect {place}{dash(index - 1) if index else ""} style="{filling}">{inside}</rect>'
