"""Lines over one axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from kdkit.display.charts.axes import LETTER, LINE, Scale, axes, colour, dash, finite, key, marker, pixel, places, svg, text, wants_log
from kdkit.display.table import number

Points = Sequence[tuple[float, float | None]]
"""(x, y) from left to right; a y of None, nan or infinity leaves a gap."""

_POINTS = 240
"""A line of more is thinned to what the picture can show."""


def line_chart(series: Mapping[str, Points], title: str, across: str = "step", log: bool | None = None, width: int = 480, height: int = 190) -> str:
    """Lines over one axis, as SVG.

    Args:
        series: points by the name of their line.
        title: above the picture.
        across: what the x axis counts.
        log: whether the y axis is logarithmic; default: only where all values are above 0 and span more than 1 : 100.
        width, height: in pixels, without the legend.

    >>> line_chart({"loss": [(1, 2.0), (2, 1.0)]}, "Loss").startswith('<svg role="img"')
    True
    """
    lines = {name: [(float(x), finite(y)) for x, y in points] for name, points in series.items()}
    seen = [y for points in lines.values() for _, y in points if y is not None]
    steps = [x for points in lines.values() for x, _ in points]
    legend = places(list(lines), width)
    tall = height + LINE * (1 + max((row for _, row in legend), default=-1))
    if not seen:
        return svg(title, "There is nothing to draw.", width, 44, [text(8, 34, "nothing to draw", "start")])
    log = wants_log(seen) if log is None else log
    ys = Scale.over([y for y in seen if y > 0 or not log], log, height - 30, 26)
    xs = Scale(min(steps), max(steps), False, 8 + LETTER * max(map(len, ys.labels().values())), width - 14)
    body = [*axes(xs, ys, across, width)]
    for index, points in enumerate(lines.values()):
        body += _line(index, [(xs.at(x), None if y is None or (log and y <= 0) else ys.at(y)) for x, y in _thinned(points)])
    for (name, (left, row)), index in zip(zip(lines, legend, strict=True), range(len(lines)), strict=True):
        body += key(index, name, left, height + LINE * row + 8)
    return svg(title + (" (log scale)" if log else ""), f"Over {across} {number(min(steps))} to {number(max(steps))}: {describe_lines(series)}.", width, tall, body)


def describe_lines(series: Mapping[str, Points]) -> str:
    """Each line as text: its first value and its last.

    >>> describe_lines({"loss": [(1, 2.0), (2, None), (3, 0.5)], "empty": []})
    'loss 2 -> 0.5, empty nothing'
    """
    lines = {name: [y for _, y in points if finite(y) is not None] for name, points in series.items()}
    return ", ".join(f"{name} {f'{seen[0]:.3g} -> {seen[-1]:.3g}' if seen else 'nothing'}" for name, seen in lines.items())


def _line(index: int, points: Sequence[tuple[float, float | None]]) -> Iterator[str]:
    path, pen = [], "M"
    for x, y in points:
        path += [f"{pen}{pixel(x)} {pixel(y)}"] if y is not None else []
        pen = "M" if y is None else "L"
    here = [(x, y) for x, y in points if y is not None]
    yield f'<path d="{"".join(path)}" fill="none" stroke-width="1.8" stroke-linejoin="round"{dash(index)} style="stroke:{colour(index)}"/>'
    every = max(1, math.ceil(len(here) / 6))
    yield from (marker(index, x, y) for x, y in [*here[:-1][::every], *here[-1:]])


def _thinned(points: Sequence[tuple[float, float | None]]) -> Sequence[tuple[float, float | None]]:
    """At most as many points as the chart can show: the lowest and the highest of each run of neighbours, so that no peak is lost."""
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
