"""Time calls alternately, so that their ratio is reliable on a noisy machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kdkit.guards.garbage import garbage_kept

MANY = 32
"""The number of items in the larger of the two timed batches."""


BUDGET_S = 0.5
"""Seconds for one timing."""

LONG_S = 3.0
"""Seconds after which no timing is taken again."""

WIDE = 0.25
"""The spread from which a timing is taken again: half of its rounds are farther apart than this share of their median."""

ENOUGH = 500
"""The number of rounds whose median is exact enough, for calls that take microseconds."""

LEAST_SHARE = 0.85
"""The share of a core that calls get on a machine that does nothing else, at least."""


@dataclass(frozen=True)
class Timing:
    """The result of timing one or two calls.

    Attributes:
        seconds: median time of the first call.
        ratio: median over the rounds of (first call's time / second call's time); None for a single call.
        n: number of rounds.
        load: a note on other work that disturbed the timing; empty on a quiet machine.
        spread: of the rounds' ratios, or times of a single call: the distance of their quartiles, as a share of the median.
        reference_seconds: median time of the second call; None for a single call.
    """

    seconds: float
    ratio: float | None
    n: int
    load: str = ""
    spread: float = 0.0
    reference_seconds: float | None = None

    @property
    def is_steady(self) -> bool:
        """Whether the machine was quiet and the rounds alike."""
        return not self.disturbance

    @property
    def disturbance(self) -> str:
        """A note on what makes it unreliable; empty if nothing does."""
        return self.load or (f"the times of repeated calls differed by {self.spread:.0%}" if self.spread > WIDE else "")


def interleave(calls: Sequence[Callable[[], Any]], budget_s: float = BUDGET_S, least: int = 3, tries: int = 2) -> Timing:
    """Time one call, or two alternately, for about `budget_s` seconds and at least `least` rounds, after a warm-up.

    A fifth of that time is enough for `ENOUGH` rounds.

    The order of the two calls alternates between rounds. A timing that is not steady is taken again, up to `tries` times in all unless
    that is long; the one with the smallest spread counts.
    """
    _warm_up(calls, budget_s / 4)
    taken: list[Timing] = []
    began = time.perf_counter()
    while not taken or (len(taken) < tries and not taken[-1].is_steady and time.perf_counter() - began < LONG_S):
        taken.append(_interleave(calls, budget_s, least))
    return min(taken, key=lambda timing: (not timing.is_steady, timing.spread))


def _interleave(calls: Sequence[Callable[[], Any]], budget_s: float, least: int) -> Timing:
    rounds: list[list[float]] = []
    busy, began = time.process_time(), time.perf_counter()
    with garbage_kept():
        while len(rounds) < least or time.perf_counter() - began < (budget_s if len(rounds) < ENOUGH else budget_s / 5):
            times = [0.0] * len(calls)
            for index in range(len(calls))[:: 1 if len(rounds) % 2 else -1]:
                times[index] = _seconds(calls[index])
            rounds.append(times)
    share = (time.process_time() - busy) / (time.perf_counter() - began)
    load = f"other work on this machine disturbed the timing: the calls got {share:.0%} of a core" if share < LEAST_SHARE else ""
    first = [times[0] for times in rounds]
    if len(calls) == 1:
        return Timing(statistics.median(first), None, len(rounds), load, _spread(first))
    ratios = [times[0] / times[1] for times in rounds]
    return Timing(statistics.median(first), statistics.median(ratios), len(rounds), load, _spread(ratios), statistics.median(times[1] for times in rounds))


def _spread(values: Sequence[float]) -> float:
    """The distance of the quartiles as a share of the median.

    >>> _spread([1.0, 1.0, 1.0, 1.0, 9.0]), _spread([2.0, 3.0, 4.0, 5.0, 6.0])
    (0.0, 0.5)
    """
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle if middle else 0.0


def _warm_up(calls: Sequence[Callable[[], Any]], budget_s: float) -> None:
    """Run each call at least once, until `budget_s` or, after `ENOUGH` rounds, a fifth of it is spent: allocators, thread pools and lazy compilation settle."""
    began, rounds = time.perf_counter(), 0
    while not rounds or time.perf_counter() - began < (budget_s if rounds < ENOUGH else budget_s / 5):
        rounds += 1
        for call in calls:
            call()


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
