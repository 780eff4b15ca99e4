"""Conditions: which versions `compare --where` shows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdkit.errors import KdError
from kdkit.measurement.report import Figure, Report
from kdkit.session.condition import Condition
from kdkit.session.history import Version
from kdkit.session.listing import Listing


def version(number, **values):
    units = {"size": "B", "latency": "ms"}
    figures = tuple(Figure(name, value, units.get(name, ""), "higher" if name == "accuracy" else "lower") for name, value in values.items())
    return Version(number, None, Report(figures), frozenset(), label=f"v{number}")


ALL = Listing((version(0, accuracy=0.9, size=4000, latency=2.0), version(1, accuracy=0.8, size=1000, latency=0.5), version(2, size=500)))


@pytest.mark.parametrize(
    ("conditions", "left"),
    [
        (["size<=1kB"], "12"),
        (["size<1kB"], "2"),
        (["accuracy>=90%"], "0"),
        (["accuracy > .85"], "0"),
        (["latency<1ms"], "1"),
        (["latency<1000us"], "1"),
        (["latency<0.001"], "1"),
        (["size!=500"], "01"),
        (["size==500"], "2"),
        (["size>=1000B", "accuracy<0.85"], "1"),
        (["accuracy>2"], ""),
    ],
)
def test_versions_that_meet_all_conditions_are_left(conditions, left):
    assert "".join(str(each.number) for each in ALL.where(conditions).versions) == left


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("size", "is not a condition"),
        ("size<", "is not a condition"),
        ("size < big", "is not a condition"),
        ("size<3parsecs", "'parsecs' is not a unit"),
        ("size<3ms", "size is in B, not in s"),
        ("accuracy<3kB", "accuracy is in plain numbers, not in B"),
        ("acuracy<1", "no version has a figure 'acuracy'"),
    ],
)
def test_a_condition_that_can_not_be_read_is_refused_in_one_line(condition, message):
    with pytest.raises(KdError, match=message):
        ALL.where([condition])


@given(st.floats(-1e6, 1e6), st.sampled_from(["<", "<=", ">", ">=", "=", "!="]), st.floats(-1e6, 1e6))
def test_a_condition_holds_as_the_comparison_of_python_does(value, operator, limit):
    found = Condition.read(f"score{operator}{limit!r}").holds(Figure("score", value))
    assert found == eval(f"value {'==' if operator == '=' else operator} limit", {"value": value, "limit": limit})


@pytest.mark.parametrize(("name", "order"), [("accuracy", "012"), ("size", "210"), ("latency", "102")])
def test_the_best_version_comes_first_and_those_without_the_figure_last(name, order):
    assert "".join(str(each.number) for each in ALL.sorted_by(name).versions) == order


def test_a_chosen_figure_is_shown_though_it_is_no_headline():
    hidden = Listing((Version(0, None, Report((Figure("moved", 3, "B", "lower", headline=False),)), frozenset()),))
    assert "moved" in repr(hidden.where(["moved<4"]))
    assert "moved" in repr(hidden.sorted_by("moved"))
