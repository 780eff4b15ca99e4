"""The time scale: one ratio for one pair of versions, whatever happened while they were timed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdkit.measurement import timing
from kdkit.measurement.report import Figure, Report
from kdkit.measurement.time_scale import TimeScale
from kdkit.measurement.timing import MANY, Timing
from kdkit.session.session import Session
from tests.fixtures import zoo

SECONDS = st.floats(1e-6, 10)
RATIOS = st.floats(0.01, 100)


def figures(timed: Timing, backend: str = "cpu") -> Report:
    """The figures of a timing, as the built-in measures make them."""
    rest = {"ratio": timed.ratio, "reference": backend}
    per_second = MANY / timed.seconds
    return Report(
        (
            Figure("latency_32", 1000 * timed.seconds, "ms", "lower", **rest),
            Figure("throughput", per_second, "items/s", **rest | {"ratio": 1 / timed.ratio}),
            Figure("size", 7, "B", "lower"),
        )
    )


@given(SECONDS, st.lists(st.tuples(SECONDS, RATIOS, st.booleans()), min_size=1, max_size=6))
def test_each_pair_has_the_ratio_that_was_measured_in_turn_whatever_the_original_took(first, others):
    scale = TimeScale()
    reports = [figures(scale.placed(Timing(first, 1.0, 5), "cpu", MANY))]
    for original, ratio, busy in others:
        timed = Timing(ratio * original, ratio, 5, "other work" * busy, reference_seconds=original)
        reports.append(figures(scale.placed(timed, "cpu", MANY)))
    base, *made = map(scale.applied, reports)
    for report, (_, ratio, _) in zip(made, others, strict=True):
        assert report["latency_32"].value / base["latency_32"].value == pytest.approx(ratio)
        assert base["throughput"].value / report["throughput"].value == pytest.approx(ratio)
        assert report["size"].value == 7


@given(st.lists(SECONDS, min_size=1, max_size=6))
def test_the_original_takes_no_longer_than_its_best_time_but_for_noise(times):
    scale = TimeScale()
    for seconds in times:
        placed = scale.placed(Timing(seconds, 1.0, 5), "cpu", 1)
    assert min(times) <= placed.seconds <= min(times) / 0.85 * 1.0001


def test_a_steady_time_takes_the_place_of_an_unsteady_one():
    scale = TimeScale()
    scale.placed(Timing(1.0, 1.0, 5, "other work"), "cpu", 1)
    assert scale.placed(Timing(1.1, 1.0, 5), "cpu", 1).seconds == 1.1


def test_backends_and_numbers_of_items_have_scales_of_their_own():
    scale = TimeScale()
    scale.placed(Timing(1.0, 1.0, 5), "cpu", 1)
    assert scale.placed(Timing(0.1, 1.0, 5), "cpu-bf16", 1).seconds == 0.1
    assert scale.placed(Timing(9.0, 1.0, 5), "cpu", MANY).seconds == 9.0
    assert scale.placed(Timing(1.05, 1.0, 5), "cpu", 1).seconds == 1.0


MEASURES = ("latency", "latency_32", "throughput")


def test_a_hiccup_while_the_original_was_timed_does_not_show(monkeypatch):
    """The timer counts calls of a layer instead of seconds; while the session opens, it is 20 times slower."""
    monkeypatch.setattr(timing, "_warm_up", lambda calls, budget_s: None)
    hiccup = 20.0
    monkeypatch.setattr(timing, "_seconds", lambda call: hiccup * sum(each.numel() for each in [call()]) * 1e-3)
    session = Session(zoo.mlp(), example=zoo.batch("mlp"), measures=MEASURES)
    shown = session.head["latency"]
    hiccup = 1.0
    made = session.run("decompose svd --ratio 0.5", label="thin")
    assert session.version("@base")["latency"] == pytest.approx(shown / 20)
    assert made["latency"] == pytest.approx(session.version("@base")["latency"])
    assert session.version("@base")["throughput"] == pytest.approx(MANY / (session.version("@base")["latency_32"] / 1000))
    assert "x1" in repr(session.compare("@base", "@thin")).splitlines()[-1]


def test_a_hiccup_while_a_version_was_timed_shows_as_disturbed_and_not_in_the_ratio_of_others(monkeypatch):
    session = Session(zoo.mlp(), example=zoo.batch("mlp"), measures=("latency",))
    before = session.run("decompose svd --ratio 0.5", label="thin")
    ratio = before["latency"] / session.version("@base")["latency"]
    real = timing._seconds
    monkeypatch.setattr(timing, "_seconds", lambda call: 30 * real(call))
    session.run("decompose svd --ratio 0.7", on="@base", label="other")
    assert session.version("@thin")["latency"] / session.version("@base")["latency"] == pytest.approx(ratio)
