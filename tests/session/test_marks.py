"""What a step did, in sentences, and which losses are marked."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from kdkit.errors import KdError
from kdkit.measurement.report import Figure, Report
from kdkit.session.cures import lines_to_restore
from kdkit.session.history import History, Version
from kdkit.session.session import Session
from tests.fixtures import zoo

MEASURES = ("quality", "size")


class Sure(nn.Module):
    """Two layers that copy their input, so that the first two of four classes get lost at half the rank."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        for layer, scale in ((self.first, [1.0, 2.0, 3.0, 4.0]), (self.second, [1.0, 1.0, 1.0, 1.0])):
            layer.weight.data = torch.diag(torch.tensor(scale))

    def forward(self, x):
        return self.second(self.first(x))


@pytest.fixture
def session():
    return Session(Sure(), eval=(torch.eye(4).repeat(10, 1), torch.arange(4).repeat(10)), measures=MEASURES)


def test_a_step_is_compared_with_the_step_before_and_with_the_first_version(session):
    session.run("decompose svd --ratio 0.5 --layers first", label="thin")
    made = session.run("tune finetune --steps 1 --learning-rate 1e-9 --data eval", label="tuned")
    assert [each.name for each in made.compared] == ["@thin", "@base"]
    shown = repr(made).splitlines()
    assert shown[1].startswith("  against @thin: accuracy")
    assert shown[2].startswith("  against @base: accuracy 1 -> ")
    assert [each.name for each in session.version("@thin").compared] == ["@base"]
    assert repr(session.version("@base")).splitlines()[1].startswith("figure")


def test_names_of_what_a_step_is_compared_with_follow_the_labels(session):
    session.run("decompose svd --ratio 0.5 --layers first", label="thin")
    session.keep("@base", "original")
    assert [each.name for each in session.version("@thin").compared] == ["@original"]


def test_bridges_are_folded_into_the_step_that_they_were_inserted_for(session):
    step = Version(2, None, Report((Figure("size", 10, "B"),)), frozenset(), parent=1)
    bridge = Version(1, None, Report((Figure("size", 20, "B"),)), frozenset(), parent=0, inserted=True)
    base = Version(0, None, Report((Figure("size", 40, "B"),)), frozenset(), "base")
    found = History({0: base, 1: bridge, 2: step}, 2, (), 3).compared(lambda version: ())
    assert {name: str(change) for name, change in found.versions[2].changes.items()} == {"@base": "4x smaller (10 B)"}


def test_a_history_in_which_nothing_changes_stays_the_same_object(session):
    session.run("decompose svd --ratio 0.5 --layers first")
    history = session.history
    session.history = history
    assert session.history is history


def test_a_long_line_is_compared_in_time_that_grows_with_its_length():
    report = Report((Figure("size", 10, "B"),))
    versions = {number: Version(number, None, report, frozenset(), parent=number - 1 if number else None) for number in range(3000)}
    began = time.process_time()
    found = History(versions, 2999, (), 3000).compared(lambda version: ())
    assert time.process_time() - began < 1
    assert [each.name for each in found.versions[2999].compared] == ["@2998", "@0"]


def test_a_loss_beyond_the_limit_is_marked_with_lines_to_run(session):
    made = session.run("decompose svd --ratio 0.7 --layers first", label="thin")
    assert made["accuracy"] < 0.98
    (mark,) = made.marks
    assert mark.startswith(f"accuracy is {100 * (1 - made['accuracy']):.2g} pt worse than that of @base; this usually restores it: ")
    assert "%kd distill soft --epochs 3 or %kd tune finetune --epochs 3" in mark
    assert f"  ! {mark}" in repr(made)
    assert mark.replace(">", "&gt;") in made._repr_html_()


def test_the_limit_is_a_setting(session):
    made = session.run("decompose svd --ratio 0.7 --layers first", label="thin")
    session.set(loss_limit=100.0)
    assert session.version(made).marks == ()
    with pytest.raises(KdError):
        session.set(loss_limit=-1)


def test_a_line_to_run_is_one_that_fits():
    assert lines_to_restore(frozenset({"onnx"})) == []


def test_a_trial_is_compared_with_its_start(session):
    made = session.trial("decompose svd --ratio 0.5 --layers first")
    assert [each.name for each in made.compared] == ["@base"]


# next steps


def test_what_restores_lost_quality_is_the_next_step(session):
    assert session.status().next[:2] != ["distill soft", "tune finetune"]
    session.run("decompose svd --ratio 0.7 --layers first", label="thin")
    assert session.status().next[:2] == ["distill soft", "tune finetune"]
    assert session.status().next.index("decompose svd") > session.status().next.index("quantize dynamic")


@pytest.mark.parametrize(("kind", "first"), [("cnn", "prune channels"), ("tiny_bert", "quantize dynamic"), ("mlp", "quantize static")])
def test_the_first_step_is_one_for_the_kind_of_net(kind, first):
    session = Session(getattr(zoo, kind)(), example=zoo.batch(kind), measures=("size",))
    assert session.status().next[0] == first


def test_a_step_has_three_times():
    session = Session(Sure(), example=torch.eye(4), measures=("size",))
    made = session.run("convert onnx")
    assert 0 < made.export_seconds < made.seconds
    assert made.measuring_seconds > 0
    assert made.times == {"work": made.seconds - made.export_seconds, "export": made.export_seconds, "measuring": made.measuring_seconds}
    assert "Times of this step" in made._repr_html_()


def test_the_times_of_a_step_include_those_of_its_bridges():
    batch = zoo.batch("mlp")
    session = Session(zoo.mlp(), example=batch, calibration=batch, measures=("size",))
    made = session.run("quantize static")
    bridge = session.history.versions[made.parent]
    assert bridge.inserted
    assert made.export_seconds == bridge.export_seconds > 0
    assert made.seconds > bridge.seconds


def test_a_pair_has_one_ratio_in_the_report_in_tables_and_in_data(monkeypatch):
    monkeypatch.delenv("KDKIT_STABLE", raising=False)
    session = Session(zoo.cnn(), example=zoo.batch("cnn"), measures=("size", "latency"))
    session.run("prune channels --ratio 0.5", label="slim")
    session.run("tune finetune --steps 1 --data example", label="small")
    base, slim, small = session.versions[0], session["@slim"], session["@small"]
    for one, other in ((base, slim), (slim, small), (base, small)):
        change = small.changes[one.name] if other is small else slim.changes[one.name]
        ratio = change.after["latency"].value / change.before["latency"].value
        rows = session.compare(one, other).records()
        assert rows[1]["latency"] / rows[0]["latency"] == pytest.approx(ratio)
        assert other.report["latency"].ratio / one.report["latency"].ratio == pytest.approx(ratio)
        assert session.compare(one, other).table.rows[1][-1].beside == f"x{ratio:.3g}"
