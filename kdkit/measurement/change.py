"""A change: what became better and worse from one version to another, in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kdkit.display.table import number, volatile
from kdkit.measurement.report import Figure, Report

NOISE = 0.05
"""Times that differ by less than this share are the same."""

AGREEMENT = "agreement"


@dataclass(frozen=True)
class Change:
    """From one report to another.

    >>> before = Report((Figure("accuracy", 0.93, data="eval"), Figure("size", 1_360_000, "B", "lower")))
    >>> after = Report((Figure("accuracy", 0.107, data="eval"), Figure("size", 97_000, "B", "lower")))
    >>> print(Change(before, after))
    accuracy .930 -> .107 (-82 pt) · 14x smaller (97 kB)
    """

    before: Report
    after: Report

    def __str__(self) -> str:
        return " · ".join([*self._quality(), *self._size(), *self._macs(), *self._time()])

    @property
    def quality(self) -> tuple[Figure, Figure] | None:
        """The main figure of quality that both have, measured on the same data; None if there is none."""
        names = [name for name, figure in self.after.items() if figure.data and name != AGREEMENT]
        for name in [*names[:1], AGREEMENT]:
            one, other = self.before.get(name), self.after.get(name)
            if one is not None and other is not None and one.data == other.data:
                return one, other
        return None

    @property
    def lost_points(self) -> float:
        """How much worse the quality is: in points, hundredths, of a share such as accuracy; in percent of another figure. Below 0 if it is better."""
        if self.quality is None:
            return 0.0
        one, other = self.quality
        lost = one.value - other.value if other.better == "higher" else other.value - one.value
        return 100 * (lost if _is_share(one, other) else lost / abs(one.value) if one.value else 0.0)

    @property
    def loss_unit(self) -> str:
        """The unit of `lost_points`: "pt" or "%"."""
        return "pt" if self.quality is None or _is_share(*self.quality) else "%"

    @property
    def slowdown(self) -> float:
        """The time as a multiple of that before, where it grew by more than noise, and was not disturbed; otherwise 1."""
        one, other = self._pair("latency")
        if one is None or other is None or not one.value or one.disturbed or other.disturbed or one.simulated != other.simulated:
            return 1.0
        ratio = other.value / one.value
        return ratio if ratio > 1 + NOISE else 1.0

    def _pair(self, name: str) -> tuple[Figure | None, Figure | None]:
        return self.before.get(name), self.after.get(name)

    def _quality(self) -> Iterator[str]:
        if self.quality is None:
            return
        one, other = self.quality
        margin = "" if other.margin is None else f" ±{100 * other.margin:.2g}"
        if _is_share(one, other):
            points = 100 * (other.value - one.value)
            yield f"{other.name} {_share(one.value)} -> {_share(other.value)} ({'±0' if abs(points) < 0.05 else f'{points:+.2g}'}{margin} pt)"
        else:
            ratio = f" (x{other.value / one.value:.3g})" if one.value else ""
            yield f"{other.name} {number(one.value, one.unit)} -> {other.text()}{ratio}"

    def _size(self) -> Iterator[str]:
        one, other = self._pair("size")
        if one is not None and other is not None:
            yield _factor(one.value, other.value, "smaller", "larger", "as large", 0.005) + f" ({other.text()})"

    def _macs(self) -> Iterator[str]:
        one, other = self._pair("macs")
        if one is not None and other is not None and one.value != other.value:
            yield _factor(one.value, other.value, "fewer MACs", "more MACs", "as many MACs", 0.005)

    def _time(self) -> Iterator[str]:
        one, other = self._pair("latency")
        if one is not None and other is not None:
            about = "~" * (one.disturbed or other.disturbed)
            yield volatile(about + _factor(one.value, other.value, "faster", "slower", "as fast", NOISE) + f" ({number(other.value, other.unit)})")


def _is_share(one: Figure, other: Figure) -> bool:
    return not other.unit and other.better == "higher" and 0 <= one.value <= 1 and 0 <= other.value <= 1


def _share(value: float) -> str:
    """Three digits of a share, without the zero before the point.

    >>> _share(0.93), _share(1.0), _share(0.9999)
    ('.930', '1', '1')
    """
    text = f"{value:.3f}"
    return text.removeprefix("0") if value < 1 and text != "1.000" else "1"


def _factor(before: float, after: float, less: str, more: str, equal: str, noise: float) -> str:
    if not before or not after or abs(after / before - 1) <= noise:
        return equal
    ratio = before / after if after < before else after / before
    return f"{ratio:.2g}x {less if after < before else more}" if ratio >= 1.095 else f"{ratio:.3g}x {less if after < before else more}"
