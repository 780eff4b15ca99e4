"""Histograms of several things over the same ranges, as outlines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from kdkit.display.charts.axes import LETTER, LINE, Scale, axes, colour, dash, finite, key, marker, pixel, places, svg
from kdkit.display.table import number

_PEAK = 5
"""How many times the ninth tenth of the shares a peak may be before the axis is logarithmic."""


def histogram(
    edges: Sequence[float], shares: Mapping[str, Sequence[float]], title: str, across: str = "", log: bool | None = None, width: int = 480, height: int = 190
) -> str:
    """Shares over common ranges as outlines, as SVG.

    Args:
        edges: of the ranges, from low to high, one more than there are ranges.
        shares: series name -> the share in each range.
        title: above the picture.
        across: what the edges are.
        log: whether the y axis is logarithmic; default: only where a peak would flatten the rest.

    >>> histogram([0, 1, 2], {"before": [0.5, 0.5], "after": [0.9, 0.1]}, "Weights").startswith('<svg role="img"')
    True
    """
    outlines = {name: [max(finite(each) or 0.0, 0.0) for each in row] for name, row in shares.items()}
    seen = sorted(each for row in outlines.values() for each in row if each > 0)
    legend = places(list(outlines), width)
    tall = height + LINE * (1 + max((row for _, row in legend), default=-1))
    log = bool(seen) and seen[-1] > _PEAK * seen[int(0.9 * (len(seen) - 1))] if log is None else log
    low = seen[0] / 2 if log and seen else 0.0
    ys = Scale(low, (seen[-1] if seen else 1.0) * 1.04, bool(log and seen), height - 30, 26)
    xs = Scale(edges[0], edges[-1], False, 8 + LETTER * max(map(len, ys.labels().values())), width - 14)
    body = [*axes(xs, ys, across, width, whole=False)]
    for index, (name, row) in enumerate(outlines.items()):
        tops = [ys.at(max(each, low)) if each > 0 or not log else ys.start for each in row]
        path = (
            f"M{pixel(xs.at(edges[0]))} {pixel(ys.start)}"
            + "".join(f"V{pixel(top)}H{pixel(xs.at(edge))}" for top, edge in zip(tops, edges[1:], strict=True))
            + f"V{pixel(ys.start)}"
        )
        paint = f"stroke:{colour(index)};fill:{colour(index)};fill-opacity:{0 if index else 0.15}"
        body.append(f'<path d="{path}" stroke-width="1.5" stroke-linejoin="round"{dash(index)} style="{paint}"><title>{escape(name)}</title></path>')
        peak = min(range(len(tops)), key=tops.__getitem__, default=None)
        body += [marker(index, (xs.at(edges[peak]) + xs.at(edges[peak + 1])) / 2, tops[peak])] if peak is not None else []
        body += key(index, name, legend[index][0], height + LINE * legend[index][1] + 8)
    return svg(
        title + (" (log scale)" if log else ""),
        f"From {number(edges[0])} to {number(edges[-1])}: {', '.join(_peak(edges, *each) for each in outlines.items())}.",
        width,
        tall,
        body,
    )


def _peak(edges: Sequence[float], name: str, row: Sequence[float]) -> str:
    at = max(range(len(row)), key=row.__getitem__, default=0)
    return f"{name}, most ({number(row[at])}) from {number(edges[at])} to {number(edges[at + 1])}" if row else f"{name}, nothing"
