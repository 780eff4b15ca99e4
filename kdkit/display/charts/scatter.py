"""Scatter charts: named points, each of which can be reached by keyboard, and the frontier of the best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from kdkit.display.charts.axes import LETTER, LINE, NAME, Scale, axes, finite, group_svg, marker, pixel, places, short, text, wants_log

_TALL = 13.0
"""Height of a name, in pixels."""
_NEAR = 8.0
"""Distance of a name from its point, in pixels."""
_STYLE = (
    "<style>.kd-point{outline:none}.kd-point .kd-hidden,.kd-point .kd-ring{opacity:0}"
    ".kd-point:hover .kd-hidden,.kd-point:focus .kd-hidden,.kd-point:focus .kd-ring{opacity:1}"
    ".kd-point .kd-hidden{paint-order:stroke;stroke:var(--kd-paper,var(--jp-layout-color0,Canvas));stroke-width:4px}</style>"
)
"""A point's ring is shown while it has the focus; a name that had no room, also under the pointer."""


@dataclass(frozen=True)
class Mark:
    """A point.

    Attributes:
        name: shown beside the point where there is room.
        x, y: coordinates; a point with None or nan is left out.
        description: what a screen reader reads, and the tooltip.
        group: which of the chart's groups it is of.
    """

    name: str
    x: float | None
    y: float | None
    description: str
    group: int = 0


def scatter_chart(
    marks: Sequence[Mark],
    title: str,
    across: str,
    up: str,
    groups: Sequence[str] = ("",),
    frontier: Sequence[tuple[float, float]] = (),
    units: tuple[str, str] = ("", ""),
    width: int = 560,
    height: int = 320,
) -> str:
    """Named points, as SVG; those that can be placed are items of a list, with focus and name.

    Args:
        marks: the points, in the order in which Tab goes through them; the first have the first right to a name beside them.
        title: above the picture.
        across, up: what the axes are; either is logarithmic where its values ask for it.
        groups: names of the groups of points; each has its marker shape, and a legend shows the groups that occur.
        frontier: the best points, from one end to the other; drawn as the stairs of what is reached.
        units: of the x axis and of the y axis.

    >>> 'aria-label="@small: 4 kB"' in scatter_chart([Mark("@small", 4000, 0.9, "@small: 4 kB")], "Versions", "size", "accuracy")
    True
    """
    placed = [(mark, x, y) for mark in marks if (x := finite(mark.x)) is not None and (y := finite(mark.y)) is not None]
    if not placed:
        return group_svg(title, "There is nothing to draw.", width, 44, [text(8, 34, "nothing to draw", "start")], [])
    columns, rows = [x for _, x, _ in placed], [y for _, _, y in placed]
    used = [index for index, group in enumerate(groups) if group and any(mark.group == index for mark, _, _ in placed)]
    legend = places([groups[index] for index in used], width)
    tall = height + (LINE * (1 + legend[-1][1]) if legend else 0)
    ys = Scale.over(rows, wants_log(rows), height - 34, 44)
    xs = Scale.over(columns, wants_log(columns), 12 + LETTER * max(map(len, ys.labels(units[1]).values())), width - 16)
    drawn = [text(8, 32, up, "start"), *axes(xs, ys, across, width, units, whole=False), _stairs([(xs.at(x), ys.at(y)) for x, y in frontier])]
    for index, (left, row) in zip(used, legend, strict=True):
        drawn += [marker(index, left + 14, height + LINE * row + 4), text(left + 26, height + LINE * row + 8, groups[index], "start")]
    spots = [(xs.at(x), ys.at(y)) for _, x, y in placed]
    beside = _placed([mark.name for mark, _, _ in placed], spots, width, height - 34)
    items = [_item(mark, spot, beside.get(index), width) for index, ((mark, _, _), spot) in enumerate(zip(placed, spots, strict=True))]
    logs = [word for word, scale in ((across, xs), (up, ys)) if scale.log]
    note = f" Log scale: {', '.join(logs)}." if logs else ""
    return group_svg(title + (" (log scale)" if logs else ""), f"{len(placed)} points, {up} over {across}.{note}", width, tall, [_STYLE, *drawn], items)


def _stairs(spots: Sequence[tuple[float, float]]) -> str:
    """What is reached between two of the best points is what the earlier one has."""
    path = "".join(f"H{pixel(x)}V{pixel(y)}" if index else f"M{pixel(x)} {pixel(y)}" for index, (x, y) in enumerate(spots))
    return f'<path d="{path}" fill="none" stroke="currentColor" stroke-opacity=".6" stroke-dasharray="5 3"/>' if path else ""


def _item(mark: Mark, spot: tuple[float, float], beside: tuple[float, float] | None, width: int) -> str:
    x, y = spot
    left = beside or (min(x + _NEAR, width - LETTER * len(short(mark.name)) - 8), y - _NEAR)
    shown = "" if beside else ' class="kd-hidden"'
    return (
        f'<g class="kd-point" role="listitem" tabindex="0" aria-label="{escape(mark.description)}"><title>{escape(mark.description)}</title>'
        f'<circle class="kd-ring" cx="{pixel(x)}" cy="{pixel(y)}" r="9" fill="none" stroke="currentColor" stroke-width="2"/>'
        f'<circle cx="{pixel(x)}" cy="{pixel(y)}" r="9" fill-opacity="0"/>{marker(mark.group, x, y)}'
        f'<text x="{pixel(left[0])}" y="{pixel(left[1])}"{shown}>{escape(short(mark.name))}</text></g>'
    )


def _placed(names: Sequence[str], spots: Sequence[tuple[float, float]], width: int, floor: float) -> dict[int, tuple[float, float]]:
    """The positions of the names that have room, by the index of their point: (left, baseline)."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    found = {}
    for index, (name, (x, y)) in enumerate(zip(names, spots, strict=True)):
        wide = LETTER * min(len(name), NAME) + 7
        for left, base in _around(x, y, wide):
            box = (left, base - _TALL + 3, left + wide, base + 3)
            free = box[0] >= 2 and box[2] <= width - 2 and box[1] >= 34 and box[3] <= floor
            if free and not any(_meet(box, other) for at, other in enumerate(taken) if at != index):
                found[index] = (left, base)
                taken.append(box)
                break
    return found


def _around(x: float, y: float, wide: float) -> Iterator[tuple[float, float]]:
    """Above first, where no stairs run through a name."""
    yield from (
        (x + 4, y - _NEAR + 2),
        (x - 4 - wide, y - _NEAR + 2),
        (x + _NEAR, y + 4),
        (x - _NEAR - wide, y + 4),
        (x + 4, y + _NEAR + 7),
        (x - 4 - wide, y + _NEAR + 7),
    )


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
