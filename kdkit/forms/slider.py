"""Sliders: a number's range beside its text field. The field holds the value; the slider moves with it and writes into it.

The label of the slider, for screen readers, is that of the field: see `kdkit.notebook.wizard.html.SCRIPT`.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets

from kdkit.errors import KdError
from kdkit.parameters.bounds import bounds_of
from kdkit.parameters.command_line import read_value
from kdkit.parameters.description import search_of
from kdkit.parameters.settings import Settings
from kdkit.parameters.value_text import write_value
from kdkit.parameters.value_types import kind

POSITIONS = 100
"""The most positions that a slider has."""


@dataclass(frozen=True)
class Scale:
    """The positions of a slider.

    Attributes:
        low, high: its ends.
        log: positions are even in the logarithm.
        whole: it has whole numbers only.

    >>> Scale(0.1, 0.8).rounded(0.30000000000000004), Scale(1e-5, 0.1, log=True).rounded(0.00123), Scale(2, 64, whole=True).rounded(7.6)
    (0.3, 0.0012, 8)
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @property
    def step(self) -> float:
        """The distance of two positions, 1, 2 or 5 times a power of ten; of the exponents of ten on a logarithmic scale.

        >>> Scale(0.1, 0.8).step, Scale(0, 1000, whole=True).step, Scale(2, 64, whole=True).step
        (0.01, 10, 1)
        """
        span = math.log10(self.high / self.low) if self.log else self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / POSITIONS))
        step = next(nice * power for nice in (1, 2, 5, 10) if nice * power * POSITIONS >= span)
        return max(1, round(step)) if self.whole and not self.log else step

    def rounded(self, position: float) -> float | int:
        """The number at a position, with as many digits as the scale has."""
        number = float(f"{position:.1e}") if self.log else round(position, max(0, -math.floor(math.log10(self.step))))
        inside = min(max(number, self.low), self.high)
        return round(inside) if self.whole else float(inside)


def scale_of(settings: type[Settings], name: str) -> Scale | None:
    """The scale of a number: the range of its search, else its bounds; None if it has none with two ends.

    >>> from kdkit.parameters.settings import param
    >>> class Sample(Settings):
    ...     ratio: float = param(0.5, "share", gt=0, lt=1, search=(0.1, 0.8))
    ...     share: float = param(0.5, "share", gt=0, lt=1)
    >>> scale_of(Sample, "ratio"), scale_of(Sample, "share")
    (Scale(low=0.1, high=0.8, log=False, whole=False), Scale(low=0.01, high=0.99, log=False, whole=False))
    """
    this, search = kind(settings, name), search_of(settings, name)
    if this.base not in (int, float) or this.choices or this.several:
        return None
    whole = this.base is int
    if search is not None:
        return None if search.choices else Scale(search.low, search.high, search.log, whole)  # type: ignore[arg-type]
    limits = bounds_of(settings, name)
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    if low is None or high is None:
        return None
    step = Scale(low, high, whole=whole).step
    return Scale(round(low + step * ("ge" not in limits), 10), round(high - step * ("le" not in limits), 10), whole=whole)


def slider_of(settings: type[Settings], name: str, text: Any) -> Any:
    """A slider for a number and its text field, which follow each other; None for a number without a range.

    Args:
        settings: the class of the field.
        name: of the field.
        text: the text field. An empty one means the default, where the slider is then.
    """
    scale = scale_of(settings, name)
    if scale is None:
        return None
    this, default = kind(settings, name), settings.model_fields[name].default
    slider = _widget(scale)
    # while one of the two moves the other one, what the other one does is no news
    moving: list[Any] = []

    def follow(change: Any = None) -> None:
        value: Any = default
        with contextlib.suppress(KdError):
            value = read_value(this, text.value.strip(), "") if text.value.strip() else default
        known = isinstance(value, int | float)
        (slider.remove_class if text.value.strip() else slider.add_class)("kdkit-unset")
        if not moving:
            moving.append(text)
            slider.value = scale.rounded(value) if known else scale.low
            moving.clear()

    def lead(change: Any) -> None:
        if not moving:
            moving.append(slider)
            text.value = write_value(scale.rounded(change["new"]))
            moving.clear()

    follow()
    text.observe(follow, "value")
    slider.observe(lead, "value")
    return slider


def _widget(scale: Scale) -> Any:
    about: dict[str, Any] = {"readout": False, "layout": {"width": "9em", "margin": "0 0 0 8px"}}
    if scale.log:
        return widgets.FloatLogSlider(value=scale.low, base=10, min=math.log10(scale.low), max=math.log10(scale.high), step=scale.step, **about)
    made = widgets.IntSlider if scale.whole else widgets.FloatSlider
    return made(value=scale.low, min=scale.low, max=scale.high, step=scale.step, **about)
