"""The parts of a picture: its frame, texts, axes, scales, colours, markers and legend."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from kdkit.display.table import number

COLOURS = ("#3b82c4", "#d0661c", "#23916b", "#bd5396", "#8271cf", "#93801a")
"""Of lines, in order; each has a contrast of at least 3 : 1 against black and against white."""

NAME = 30
"""Characters of a name that are shown; the whole of it is in the tooltip."""
LETTER = 6.2
"""Width of a letter, in pixels, at the size of a chart's text."""
LINE = 18
"""Height of a line of text."""

_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4")
_HUGE = 1e150
_STYLE = "max-width:100%;height:auto;font:11px system-ui,sans-serif;fill:currentColor"


class Scale:
    """Values on an axis, to pixels."""

    def __init__(self, low: float, high: float, log: bool, start: float, end: float):
        self.low, self.high, self.log, self.start, self.end = low, high, log, start, end

    @classmethod
    def over(cls, values: Sequence[float], log: bool, start: float, end: float) -> Scale:
        """With room for all values; a constant is in the middle."""
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

    def labels(self, unit: str = "") -> dict[float, str]:
        """The label of each tick, with as many digits as distinguish them.

        >>> list(Scale(0.9871, 0.9884, False, 0, 100).labels().values())
        ['0.9875', '0.988']
        """
        ticks = self.ticks()
        said = [number(tick, unit) for tick in ticks]
        for digits in range(4, 16):
            if len(set(said)) == len(ticks):
                break
            said = [f"{tick:.{digits}g} {unit}".rstrip() for tick in ticks]
        return dict(zip(ticks, said, strict=True))


def wants_log(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis suits the values (at least one): all are above 0, and they span more than 1 : 100."""
    return all(value > 0 for value in values) and max(values) > 100 * min(values)


def axes(xs: Scale, ys: Scale, across: str, width: int, units: tuple[str, str] = ("", ""), whole: bool = True) -> Iterator[str]:
    """Lines and numbers behind what is drawn.

    Args:
        across: what the x axis counts.
        units: of the x axis and of the y axis.
        whole: whether the ticks of the x axis are integers only, where the axis has integers.
    """
    for value, said in ys.labels(units[1]).items():
        y = ys.at(value)
        yield f'<path d="M{pixel(xs.start)} {pixel(y)}H{pixel(xs.end)}" stroke="currentColor" stroke-opacity=".18"/>'
        yield text(xs.start - 5, y + 4, said, "end")
    labels = xs.labels(units[0])
    for value in [tick for tick in labels if tick == round(tick)] or labels if whole else labels:
        yield text(min(xs.at(value), width - LETTER * len(labels[value]) / 2 - 1), ys.start + 15, labels[value], "middle")
    yield f'<path d="M{pixel(xs.start)} {pixel(ys.start)}H{pixel(xs.end)}" stroke="currentColor" stroke-opacity=".5"/>'
    yield text((xs.start + xs.end) / 2, ys.start + 28, across, "middle")


def marker(index: int, x: float, y: float) -> str:
    """A sign at a point; no two of seven neighbours have the same shape."""
    shapes = (
        "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0z",
        "m-3 -3h6v6h-6z",
        "m0 -4l4 7h-8z",
        "m0 -4l4 4l-4 4l-4 -4z",
        "m0 4l4 -7h-8z",
        "m-3.5 -1h2.5v-2.5h2v2.5h2.5v2h-2.5v2.5h-2v-2.5h-2.5z",
        "m-4 -1.5h8v3h-8z",
    )
    return f'<path d="M{pixel(x)} {pixel(y)}{shapes[index % len(shapes)]}" style="fill:{colour(index)}"/>'


def places(names: Sequence[str], width: int) -> list[tuple[float, int]]:
    """The position of each name of a legend: (left, row)."""
    found, left, row = [], 8.0, 0
    for name in names:
        wide = 50 + LETTER * len(short(name))
        if left > 8 and left + wide > width:
            left, row = 8.0, row + 1
        found.append((left, row))
        left += wide
    return found


def key(index: int, name: str, left: float, y: float) -> Iterator[str]:
    """A line of the legend: its sample and its name."""
    yield f'<path d="M{pixel(left)} {pixel(y)}h28" fill="none" stroke-width="1.8"{dash(index)} style="stroke:{colour(index)}"/>'
    yield marker(index, left + 14, y)
    yield f'<text x="{pixel(left + 33)}" y="{pixel(y + 4)}">{named(name)}</text>'


def svg(title: str, description: str, width: int, height: int, body: Sequence[str]) -> str:
    """A whole picture, as one image to a screen reader."""
    label = escape(f"{title}. {description}")
    head = f'<svg role="img" aria-label="{label}" {_size(width, height)}>'
    # the title is visible text, so the chart needs no tooltip over its whole area
    return f"{head}<desc>{label}</desc>{_heading(title)}{''.join(body)}</svg>"


def group_svg(title: str, description: str, width: int, height: int, drawn: Sequence[str], items: Sequence[str]) -> str:
    """A whole picture with items that can be reached by keyboard, each a `<g role="listitem">`; the rest is only seen.

    An image may hold nothing that takes the focus, so this is a group.
    """
    hidden = f'<g aria-hidden="true">{_heading(title)}{"".join(drawn)}</g>'
    listed = f'<g role="list" aria-label="{escape(title)}">{"".join(items)}</g>' if items else ""
    return f'<svg role="group" aria-label="{escape(f"{title}. {description}")}" {_size(width, height)}>{hidden}{listed}</svg>'


def _size(width: int, height: int) -> str:
    return f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" style="{_STYLE}"'


def _heading(title: str) -> str:
    return f'<text x="8" y="15" style="font-weight:600">{escape(title)}</text>'


def text(x: float, y: float, text: str, anchor: str) -> str:
    """A text at a point."""
    return f'<text x="{pixel(x)}" y="{pixel(y)}" text-anchor="{anchor}">{escape(text)}</text>'


def named(name: str) -> str:
    """A name as the content of a text: shortened, with the whole of it as tooltip."""
    return escape(name) if short(name) == name else f"<title>{escape(name)}</title>{escape(short(name))}"


def short(name: str) -> str:
    """Both ends of a long name, as layers' names differ at either."""
    return name if len(name) <= NAME else f"{name[: NAME // 2 - 1]}…{name[-NAME // 2 :]}"


def dash(index: int) -> str:
    """The dashes of the line of that number, as an attribute; none for the first."""
    return f' stroke-dasharray="{_DASHES[index % len(_DASHES)]}"' if index % len(_DASHES) else ""


def colour(index: int) -> str:
    """The colour of the line of that number, as CSS."""
    at = index % len(COLOURS)
    return f"var(--kd-series-{at + 1},{COLOURS[at]})"


def finite(value: float | None) -> float | None:
    """None for what has no place on an axis; the very ends of what a float can hold are no places either."""
    if value is None or not abs(value) < _HUGE:
        return None
    return float(value) if abs(value) > 1 / _HUGE else 0.0


def pixel(at: float) -> str:
    """A coordinate, to a tenth.

    >>> pixel(3.04), pixel(3.16)
    ('3', '3.2')
    """
    return f"{at:.1f}".removesuffix(".0")
