"""Timing: interleaved calls, medians and the load of the machine."""

from __future__ import annotations

import itertools
import time

from kdkit.measurement import timing
from kdkit.measurement.measure import Measure
from kdkit.measurement.timing import interleave
from tests.fixtures.measuring import measure, subject


def test_a_subject_is_measured_again_each_time_and_keeps_its_own_notes():
    version = subject(notes=["mine"])
    stated = Measure("watts", "W", "lower", lambda subject: subject.notes.append("theirs"))
    assert measure(version, [stated]).notes == measure(version, [stated]).notes == ("theirs",)
    assert version.notes == ["mine"]


def test_calls_are_timed_in_turn_and_which_goes_first_changes():
    order = []
    timing = interleave([lambda: order.append("a"), lambda: order.append("b")], budget_s=0, least=4)
    assert timing.n == 4
    assert "".join(order).endswith("baabbaab")


def test_the_time_is_the_median_and_the_ratio_the_median_of_the_rounds(monkeypatch):
    durations = {"a": itertools.cycle([1.0, 2.0, 9.0]), "b": itertools.cycle([2.0, 2.0, 3.0])}
    monkeypatch.setattr(timing, "_seconds", lambda call: next(durations[call()]))
    monkeypatch.setattr(timing, "_warm_up", lambda calls, budget_s: None)
    timed = interleave([lambda: "a", lambda: "b"], budget_s=0, least=3)
    assert (timed.seconds, timed.ratio, timed.reference_seconds) == (2.0, 1.0, 2.0)


def test_a_timing_whose_rounds_differ_is_taken_again_and_the_steadier_one_counts(monkeypatch):
    monkeypatch.setattr(timing, "_warm_up", lambda calls, budget_s: None)
    monkeypatch.setattr(timing, "LEAST_SHARE", 0)
    durations = iter([1.0, 2.0, 9.0, 3.0, 3.0, 3.0])
    monkeypatch.setattr(timing, "_seconds", lambda call: next(durations))
    timed = interleave([lambda: None], budget_s=0, least=3)
    assert (timed.seconds, timed.spread, timed.is_steady) == (3.0, 0, True)


def test_a_timing_that_stays_unsteady_says_so(monkeypatch):
    monkeypatch.setattr(timing, "_warm_up", lambda calls, budget_s: None)
    monkeypatch.setattr(timing, "LEAST_SHARE", 0)
    durations = iter([1.0, 2.0, 9.0, 1.0, 2.0, 3.0])
    monkeypatch.setattr(timing, "_seconds", lambda call: next(durations))
    timed = interleave([lambda: None], budget_s=0, least=3)
    assert (timed.seconds, timed.is_steady, timed.disturbance) == (2.0, False, "the times of repeated calls differed by 50%")


def test_a_call_that_gets_less_than_a_core_is_reported_as_load_on_the_machine():
    assert "other work" in interleave([lambda: time.sleep(0.01)], budget_s=0.01).load


def test_the_collector_of_garbage_rests_during_timing_and_works_again_after_it():
    import gc

    seen = []
    interleave([lambda: seen.append(gc.isenabled())], budget_s=0, least=3)
    assert seen[-3:] == [False] * 3
    assert gc.isenabled()


def test_calls_of_microseconds_take_a_fifth_of_the_time():
    began = time.perf_counter()
    timed = interleave([lambda: None], budget_s=2.0)
    assert timed.n >= timing.ENOUGH
    assert time.perf_counter() - began < 4 * (2.0 / 5 + 2.0 / 20)
