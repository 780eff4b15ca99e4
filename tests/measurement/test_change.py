"""Changes: the sentence on what became better and worse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdkit.measurement.change import Change
from kdkit.measurement.report import Figure, Report


def report(accuracy=None, size=None, latency=None, macs=None, disturbed=False, data="eval", metric="accuracy", better="higher", margin=None):
    figures = [
        None if accuracy is None else Figure(metric, accuracy, "", better, data=data, n=1000, margin=margin),
        None if size is None else Figure("size", size, "B", "lower"),
        None if macs is None else Figure("macs", macs, "", "lower"),
        None if latency is None else Figure("latency", latency, "ms", "lower", disturbed=disturbed),
    ]
    return Report(tuple(figure for figure in figures if figure is not None))


def test_the_sentence_has_quality_size_and_time_as_people_say_it():
    change = Change(report(0.93, 1_360_000, 0.23), report(0.107, 97_000, 0.059))
    assert str(change) == "accuracy .930 -> .107 (-82 pt) · 14x smaller (97 kB) · 3.9x faster (59 µs)"


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ({"accuracy": 0.5}, {"accuracy": 0.5004}, "accuracy .500 -> .500 (±0 pt)"),
        ({"accuracy": 1.0}, {"accuracy": 0.996}, "accuracy 1 -> .996 (-0.4 pt)"),
        ({"accuracy": 0.5}, {"accuracy": 0.6, "margin": 0.011}, "accuracy .500 -> .600 (+10 ±1.1 pt)"),
        ({"accuracy": 12.0, "metric": "perplexity", "better": "lower"}, {"accuracy": 15.0, "metric": "perplexity", "better": "lower"}, "perplexity 12 -> 15 (x1.25)"),
        ({"size": 1000}, {"size": 1000}, "as large (1 kB)"),
        ({"size": 1000}, {"size": 1020}, "1.02x larger (1.02 kB)"),
        ({"macs": 100, "latency": 1.0}, {"macs": 50, "latency": 1.27}, "2x fewer MACs · 1.3x slower (1.27 ms)"),
        ({"latency": 1.0}, {"latency": 0.97}, "as fast (970 µs)"),
        ({"latency": 1.0}, {"latency": 0.5, "disturbed": True}, "~2x faster (500 µs)"),
        ({}, {"latency": 0.5}, ""),
    ],
)
def test_each_part_says_how_much(before, after, sentence):
    assert str(Change(report(**before), report(**after))) == sentence


def test_figures_on_other_data_are_not_compared():
    assert Change(report(0.9, data="earlier eval"), report(0.5)).quality is None
    assert Change(report(0.9, data="earlier eval"), report(0.5)).lost_points == 0


def test_without_labels_the_agreement_is_the_quality():
    change = Change(report(1.0, metric="agreement"), report(0.97, metric="agreement"))
    assert str(change) == "agreement 1 -> .970 (-3 pt)"


@given(st.floats(0, 1), st.floats(0, 1))
def test_what_one_way_loses_the_other_way_gains(one, other):
    there, back = Change(report(one), report(other)), Change(report(other), report(one))
    assert there.lost_points == pytest.approx(-back.lost_points)
    assert there.lost_points == pytest.approx(100 * (one - other))


def test_a_loss_of_another_figure_is_in_percent():
    change = Change(report(10.0, metric="perplexity", better="lower"), report(12.0, metric="perplexity", better="lower"))
    assert (change.lost_points, change.loss_unit) == (pytest.approx(20), "%")


def test_a_slowdown_is_more_than_noise_and_neither_disturbed_nor_simulated():
    assert Change(report(latency=1.0), report(latency=1.27)).slowdown == pytest.approx(1.27)
    assert Change(report(latency=1.0), report(latency=1.04)).slowdown == 1
    assert Change(report(latency=1.0), report(latency=9.0, disturbed=True)).slowdown == 1
    assert Change(report(), report(latency=9.0)).slowdown == 1


def test_times_are_left_out_of_stable_text(monkeypatch):
    monkeypatch.setenv("KDKIT_STABLE", "1")
    assert str(Change(report(size=10, latency=1.0), report(size=5, latency=0.5))) == "2x smaller (5 B) · …"
