"""Reports: figures as text, HTML and JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdkit.errors import KdError
from kdkit.measurement.report import Figure, Report
from tests.fixtures import zoo
from tests.fixtures.measuring import measure, subject

figures = st.builds(
    Figure,
    name=st.text(min_size=1),
    value=st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60),
    unit=st.sampled_from(["", "B", "ms", "J"]),
    better=st.sampled_from(["higher", "lower"]),
    backend=st.text(),
    simulated=st.booleans(),
    n=st.none() | st.integers(0, 10**9),
    ratio=st.none() | st.floats(0.01, 100),
)


@pytest.mark.slow
@given(st.lists(figures, unique_by=lambda figure: figure.name, max_size=5), st.lists(st.text(), max_size=3), st.text())
def test_a_report_comes_back_from_json_as_it_was(listed, notes, load):
    report = Report(tuple(listed), tuple(notes), load)
    assert Report.from_data(json.loads(json.dumps(report.as_data()))) == report


def test_a_report_of_a_newer_kdkit_is_read_without_what_it_added():
    data = Report((Figure("size", 3, "B"),)).as_data()
    data["figures"][0]["colour"] = 0.1
    assert Report.from_data(data | {"weather": "fine"}) == Report((Figure("size", 3, "B"),))


@pytest.mark.parametrize("data", [{}, {"figures": [{"value": 3}]}, {"figures": 3}, {"figures": [3]}])
def test_what_is_no_report_is_refused_in_a_sentence(data):
    with pytest.raises(KdError, match="this is not a report"):
        Report.from_data(data)


def test_a_report_is_a_mapping_that_nobody_changes():
    report = Report((Figure("size", 3, "B"),))
    assert (report["size"].value, len(report), "size" in report, report.get("speed")) == (3, 1, True, None)
    with pytest.raises(TypeError):
        report["speed"] = Figure("speed", 1)
    with pytest.raises(AttributeError):
        report.notes = ("changed",)
    with pytest.raises(KeyError):
        report["speed"]


SHOWN = Report(
    (Figure("accuracy", 0.9512, n=1000), Figure("size", 370_123, "B", "lower", simulated=True), Figure("latency", 3.2, "ms", "lower", n=41, ratio=0.5)),
    ("energy was not measured: OSError: no meter",),
    "other work on this machine",
)


def test_a_report_as_text_has_its_figures_and_its_notes():
    assert repr(SHOWN).splitlines() == [
        "figure     value  simulated     n",
        "accuracy   0.951             1000",
        "size         n/a     370 kB",
        "latency   3.2 ms               41",
        "note: energy was not measured: OSError: no meter",
        "note: other work on this machine",
    ]


def test_a_report_as_stable_text_hides_what_changes_from_run_to_run(monkeypatch):
    monkeypatch.setenv("KDKIT_STABLE", "1")
    assert repr(SHOWN).splitlines() == [
        "figure    value  simulated     n",
        "accuracy  0.951             1000",
        "size        n/a     370 kB",
        "latency       …                …",
        "note: energy was not measured: OSError: no meter",
    ]


def test_a_report_as_html_keeps_what_is_simulated_in_a_column_of_its_own_and_escapes_its_notes():
    html = Report(SHOWN.figures, ("a < b",))._repr_html_()
    assert '<th scope="col" style="text-align: right">simulated</th>' in html
    assert "a &lt; b" in html
    assert "simulated" not in Report((Figure("size", 3, "B"),))._repr_html_()


def test_an_empty_report_shows_as_one():
    assert repr(Report()) == "figure  value"


def test_a_figure_is_related_to_another_by_difference_or_by_factor():
    assert Figure("accuracy", 0.94).against(Figure("accuracy", 0.95)) == "-0.01"
    assert Figure("accuracy", 0.94).against(Figure("accuracy", 0.94)) == "+0"
    assert Figure("macs", 25, better="lower").against(Figure("macs", 100)) == "x0.25"
    assert Figure("macs", 25, better="lower").against(Figure("macs", 0)) == ""
    assert Figure("latency", 1, "ms", "lower").against(Figure("latency", 4, "ms")) == "x0.25"


def test_a_figure_that_is_simulated_says_so():
    assert Figure("size", 370_123, "B", "lower", simulated=True).text() == "370 kB simulated"


def test_a_metric_that_is_not_the_tasks_own_and_a_measure_of_detail_are_no_headlines():
    report = measure(subject(original=zoo.mlp()), ["quality", "agreement", "size", "throughput"])
    assert [name for name, figure in report.items() if figure.headline] == ["accuracy", "agreement", "size"]
