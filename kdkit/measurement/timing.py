"""Time calls alternately, so that their ratio is reliable on a noisy machine."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

MANY = 32
"""The number of items in the larger of the two timed batches."""


@dataclass(frozen=True)
class Timing:
    """The result of timing one or two calls.

    Attributes:
        seconds: median time of the first call.
        ratio: median over the rounds of (first call's time / second call's time); None for a single call.
        n: number of rounds.
        load: a note on other work that disturbed the timing; empty on a quiet machine.
    """

    seconds: float
    ratio: float | None
    n: int
    load: str = ""


def interleave(calls: Sequence[Callable[[], Any]], budget_s: float = 0.5, least: int = 3) -> Timing:
    """Time one call, or two alternately, for about `budget_s` seconds and at least `least` rounds, after a warm-up.

    The order of the two calls alternates between rounds.
    """
    _warm_up(calls, budget_s / 4)
    rounds: list[list[float]] = []
    busy, began = time.process_time(), time.perf_counter()
    with _no_collection():
        while len(rounds) < least or time.perf_counter() - began < budget_s:
            times = [0.0] * len(calls)
            for index in range(len(calls))[:: 1 if len(rounds) % 2 else -1]:
                times[index] = _seconds(calls[index])
            rounds.append(times)
    share = (time.process_time() - busy) / (time.perf_counter() - began)
    ratio = statistics.median(times[0] / times[1] for times in rounds) if len(calls) > 1 else None
    load = f"other work on this machine disturbed the timing: the calls got {share:.0%} of a core" if share < 0.85 else ""
    return Timing(statistics.median(times[0] for times in rounds), ratio, len(rounds), load)


def _warm_up(calls: Sequence[Callable[[], Any]], budget_s: float) -> None:
    """Run each call at least once, until `budget_s` is spent: allocators, thread pools and lazy compilation settle."""
    began = time.perf_counter()
    for call in calls:
        call()
    while time.perf_counter() - began < budget_s:
        for call in calls:
            call()


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Turn garbage collection off, as `timeit` does."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
