"""Measuring: which figures a report holds, and what happens when a measure fails."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdkit.data import Batch
from kdkit.data.batch import resize
from kdkit.errors import Cancelled, KdError
from kdkit.measurement.builtin import BUILT_IN
from kdkit.measurement.macs import count_macs
from kdkit.measurement.measure import Measure
from kdkit.measurement.report import Figure
from kdkit.measurement.size import count_parameters, size_bytes
from kdkit.session.measuring import choose_measures
from tests.fixtures import zoo
from tests.fixtures.measuring import measure, names, subject


def test_everything_that_can_be_measured_is_there_in_order():
    version = subject(original=zoo.mlp())
    report = measure(version, BUILT_IN)
    rest = ["parameters", "size", "macs", "memory", "moved", "latency", "latency_32", "throughput"]
    assert [name for name in report if name != "energy"] == ["accuracy", "loss", "agreement", *rest]
    assert report.notes == ()
    assert {figure.backend for figure in report.values()} == {"plain"}


def test_measures_of_the_plugins_are_what_is_measured_by_default():
    offered = BUILT_IN
    assert [each.name for each in choose_measures()][: len(offered)] == [each.name for each in offered]


def test_an_unknown_measure_is_an_error_that_knows_the_near_ones():
    with pytest.raises(KdError, match="no measure 'latencyy'") as caught:
        measure(subject(), ["latencyy"])
    assert "did you mean latency" in str(caught.value)


def test_counts_are_those_of_counting_for_one_item():
    version = subject(zoo.mlp())
    report = measure(version, names("parameters", "size", "macs", "memory"))
    assert report["parameters"].value == count_parameters(version.model)
    assert report["size"].value == size_bytes(version.model)
    assert report["macs"].value == count_macs(version.model, version.example[:1])
    assert report["memory"].value > report["size"].value


def test_without_data_and_without_an_example_only_what_the_model_tells_is_measured():
    report = measure(subject(data=None, example=None, original=zoo.mlp()), BUILT_IN)
    assert list(report) == ["parameters", "size"]
    assert report.notes == ()


def broken(subject):
    raise OSError("the meter\nis unplugged")


@pytest.mark.parametrize(
    ("run", "stated"),
    [
        (broken, "watts was not measured: OSError: the meter"),
        (lambda subject: "many", "watts was not measured: TypeError: str is not a number"),
        (lambda subject: [True], "watts was not measured: TypeError"),
        (lambda subject: math.nan, "watts was not measured: ValueError: watts is nan"),
        (lambda subject: [Figure("loss", math.inf)], "watts was not measured: ValueError: loss is inf"),
        (lambda subject: Figure("size", 3.0), "watts was not measured: another measure already returned a figure 'size'"),
    ],
)
def test_a_measure_that_fails_is_noted_with_its_reason_and_the_rest_is_measured(run, stated):
    report = measure(subject(), [*names("size"), Measure("watts", "W", "lower", run), *names("macs")])
    assert list(report) == ["size", "macs"]
    assert len(report.notes) == 1
    assert report.notes[0].startswith(stated)
    assert "\n" not in report.notes[0]


def test_a_measure_that_gives_nothing_is_absent_without_a_note():
    report = measure(subject(), [Measure("watts", "W", "lower", lambda subject: None)])
    assert (len(report), report.notes) == (0, ())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Cancelled])
def test_a_request_to_stop_is_no_failed_measure(stop):
    def stopped(subject):
        raise stop("stop")

    with pytest.raises(stop):
        measure(subject(), [Measure("watts", "W", "lower", stopped)])


def test_a_model_whose_call_fails_still_has_its_size():
    report = measure(subject(nn.Linear(3, 2)), BUILT_IN)
    assert list(report) == ["parameters", "size"]
    assert any(note.startswith("latency was not measured: a linear layer expects 3 features") for note in report.notes)


def test_measures_of_strangers_give_a_value_or_whole_figures():
    several = Measure("layers", "", "lower", lambda subject: [Figure("linears", 3, better="lower"), Figure("dropouts", 1, n=5)])
    report = measure(subject(), [Measure("depth", "", "lower", lambda subject: 4), several])
    assert [(figure.name, figure.value, figure.better, figure.backend) for figure in report.values()] == [
        ("depth", 4, "lower", "plain"), ("linears", 3, "lower", "plain"), ("dropouts", 1, "higher", "plain"),
    ]  # fmt: skip


@pytest.mark.slow
@given(st.integers(1, 5), st.integers(1, 40))
def test_a_resized_batch_repeats_its_items_in_order(have, size):
    items = torch.arange(have)
    batch = resize(Batch((items, 3), {"mask": items[:, None], "scale": torch.tensor(2.0)}, items + 10), size)
    assert batch.args[0].tolist() == [index % have for index in range(size)]
    assert batch.args[1] == 3
    assert batch.kwargs["mask"].shape == (size, 1)
    assert batch.kwargs["scale"].item() == 2
    assert torch.equal(batch.labels, batch.args[0] + 10)
