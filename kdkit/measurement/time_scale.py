"""The time scale: all times of a session are multiples of the original's, so that each pair of versions has one ratio everywhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kdkit.measurement.report import Figure, Report
from kdkit.measurement.timing import MANY, Timing

HICCUP = 0.85
"""A later time of the original below this share of the one so far shows that the latter was taken in a hiccup."""

TIMED = {"latency": 1, "latency_32": MANY, "throughput": MANY}
"""The figures on the scale, and with how many items their calls are timed."""


@dataclass(frozen=True)
class _Unit:
    seconds: float
    is_steady: bool


class TimeScale:
    """The times of a session's original model, by backend and number of items.

    Whenever a version is timed the original is timed in turn with it. The version's time is their ratio times the original's time on this
    scale; if that time turns out to have been taken in a hiccup, it is replaced, and `applied` corrects the figures of other versions.

    >>> scale = TimeScale()
    >>> slow, made = scale.placed(Timing(0.9, None, 5), "cpu", 1), scale.placed(Timing(0.05, 0.5, 5, reference_seconds=0.1), "cpu", 1)
    >>> slow.seconds, made.seconds, scale.placed(Timing(0.11, None, 5), "cpu", 1).seconds
    (0.9, 0.05, 0.1)
    """

    def __init__(self) -> None:
        self._units: dict[tuple[str, int], _Unit] = {}

    def placed(self, timing: Timing, backend: str, items: int) -> Timing:
        """A timing with its time on the scale.

        Args:
            timing: of the original alone, or of a version in turn with the original.
            backend: of the original.
            items: of a call.
        """
        original = timing.seconds if timing.reference_seconds is None else timing.reference_seconds
        unit = self._units.get((backend, items))
        if unit is None or (timing.is_steady and not unit.is_steady) or original < HICCUP * unit.seconds:
            unit = self._units[backend, items] = _Unit(original, timing.is_steady)
        return replace(timing, seconds=unit.seconds * (1.0 if timing.ratio is None else timing.ratio))

    def applied(self, report: Report) -> Report:
        """A report with the times that its ratios have on the scale now; itself if these are its own."""
        figures = tuple(map(self._on_scale, report.figures))
        return report if all(figure is before for figure, before in zip(figures, report.figures, strict=True)) else replace(report, figures=figures)

    def _on_scale(self, figure: Figure) -> Figure:
        unit = self._units.get((figure.reference, TIMED.get(figure.name, 0)))
        if unit is None or figure.ratio is None:
            return figure
        value = TIMED[figure.name] / unit.seconds * figure.ratio if figure.name == "throughput" else 1000 * unit.seconds * figure.ratio
        return figure if figure.value == value else replace(figure, value=value)
