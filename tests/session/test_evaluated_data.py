"""Evaluation data that come late, that are replaced, or that are too many to be measured on at once."""

from __future__ import annotations

import pytest
import torch

from kdkit.data.datasets import Data
from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data
from kdkit.session.evaluated_data import FIRST, LARGE, EvaluatedData
from kdkit.session.session import Session
from tests.fixtures import zoo

COUNTS = ("quality", "agreement", "parameters")


def items(count, seed=0):
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed)), torch.arange(count) % 4


def test_the_original_is_measured_as_soon_as_there_are_evaluation_data():
    session = Session(zoo.mlp(), example=items(4)[0], measures=(*COUNTS, "macs"))
    session.run("decompose svd --ratio 0.5", label="thin")
    assert "accuracy" not in session.version("@base").report
    session.set(eval=items(40))
    report = session.version("@base").report
    assert report["accuracy"].value == Session(zoo.mlp(), eval=items(40), measures=COUNTS).head["accuracy"]
    assert (report["accuracy"].data, report["accuracy"].n, "macs" in report) == ("eval", 40, True)
    assert "note: @thin: measured before there were evaluation data; %kd eval @thin measures it again" in repr(session.status())
    session.evaluate("@thin")
    assert "note" not in repr(session.status())


def test_without_any_data_before_costs_are_measured_too():
    session = Session(zoo.mlp(), measures=(*COUNTS, "macs"))
    session.set(eval=items(40))
    assert list(session.head.report) == ["accuracy", "loss", "agreement", "parameters", "macs"]


def test_figures_on_data_that_were_replaced_are_marked_until_they_are_measured_again():
    session = Session(zoo.mlp(), eval=items(40), measures=COUNTS)
    thin = session.run("decompose svd --ratio 0.5", label="thin")
    session.set(eval=items(24, seed=1))
    assert [figure.n for figure in session.version("@base").report.values() if figure.data] == [24, 24, 24]
    old = session.version("@thin").report
    assert (old["accuracy"].value, old["accuracy"].data) == (thin["accuracy"], "earlier eval")
    assert "note: @thin: measured on evaluation data that were replaced since; %kd eval @thin measures it again" in repr(session.compare())
    session.evaluate("@thin")
    assert "note" not in repr(session.compare())


def test_the_same_data_given_again_measure_and_mark_nothing(monkeypatch):
    session = Session(zoo.mlp(), eval=items(40), measures=COUNTS)
    session.run("decompose svd --ratio 0.5", label="thin")
    monkeypatch.setattr(session, "_with_quality", lambda *given: pytest.fail("measured"))
    session.set(eval=items(40), task=None, batch_size=16)
    assert "note" not in repr(session.compare())


def test_data_that_differ_late_are_others_whatever_their_batches():
    inputs, labels = items(80)
    later = labels.clone()
    later[70:] = (later[70:] + 1) % 4
    session = Session(zoo.mlp(), eval=(inputs, labels), measures=COUNTS)
    session.run("decompose svd --ratio 0.5", label="thin")
    session.set(eval=(inputs, later), batch_size=16)
    assert session["@base"]["accuracy"] == Session(zoo.mlp(), eval=(inputs, later), measures=COUNTS).head["accuracy"]
    assert session.version("@thin").report["accuracy"].data == "earlier eval"


def test_a_removed_version_comes_back_with_its_figures_marked():
    session = Session(zoo.mlp(), eval=items(40), measures=COUNTS)
    session.run("decompose svd --ratio 0.5", label="thin")
    session.undo()
    session.drop("@thin")
    session.set(eval=items(40, seed=1))
    session.restore("@thin")
    assert session.version("@thin").report["accuracy"].data == "earlier eval"


def test_figures_by_another_output_are_marked():
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.one, self.two = torch.nn.Linear(16, 16), torch.nn.Linear(16, 4), torch.nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            seen = self.body(x).relu()
            return self.one(seen), self.two(seen)

    session = Session(Two(), eval=items(40), output="0", measures=COUNTS)
    session.run("decompose svd --ratio 0.5", label="thin")
    session.set(output="1")
    assert session["@base"].report["accuracy"].data == "eval"
    assert session.version("@thin").report["accuracy"].data == "earlier eval"


@pytest.mark.parametrize("flip", [lambda weight: weight.mul_(-1), lambda weight: weight.data.mul_(-1)])
def test_a_version_whose_weights_were_changed_runs_again(flip):
    session = Session(zoo.mlp(), eval=items(40), measures=COUNTS)
    thin = session.run("decompose svd --ratio 0.5", label="thin")
    with torch.no_grad():
        for weight in thin.model.parameters():
            flip(weight)
    assert session.evaluate("@thin")["loss"].value != thin["loss"]


@pytest.mark.parametrize("changed", ["labels", "items"])
def test_data_that_differ_only_in_labels_or_in_number_are_others(changed):
    inputs, labels = items(40)
    session = Session(zoo.mlp(), eval=(inputs, labels), measures=COUNTS)
    session.set(eval=(inputs, labels.flip(0)) if changed == "labels" else (torch.cat([inputs, inputs]), torch.cat([labels, labels])))
    assert session.head["accuracy"] == Session(zoo.mlp(), eval=session.objects["eval"], measures=COUNTS).head["accuracy"]
    assert session.head.report["accuracy"].n == (40 if changed == "labels" else 80)


def test_another_metric_is_measured_at_once():
    session = Session(zoo.mlp(), eval=items(40), measures=COUNTS)

    def share_of_ones(predictions, labels):
        return float((predictions.argmax(-1) == 1).float().mean())

    session.set(metric=share_of_ones)
    assert "share_of_ones" in session.head.report
    assert "parameters" in session.head.report


def test_a_note_on_why_there_was_no_quality_goes_when_there_is_one():
    session = Session(zoo.mlp(), eval=(items(40)[0], None), task="classification", measures=COUNTS)
    assert "quality was not measured" in repr(session.head.report)
    session.set(eval=items(40))
    assert "quality was not measured" not in repr(session.head.report)


def test_an_interrupt_while_the_original_is_measured_leaves_the_data_as_they_were(monkeypatch):
    session = Session(zoo.mlp(), eval=items(40), measures=COUNTS)
    before = session.objects["eval"], session.history

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "_with_quality", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.set(eval=items(8), seed=3)
    assert (session.objects["eval"], session.history, session.settings["seed"]) == (*before, 0)


def test_other_settings_measure_nothing(monkeypatch):
    session = Session(zoo.mlp(), eval=items(40), measures=COUNTS)
    monkeypatch.setattr(session, "_with_quality", lambda *given: pytest.fail("measured"))
    session.set(seed=4, train=items(4))


# samples


def test_a_sample_has_a_margin_and_all_data_have_none():
    session = Session(zoo.mlp(), eval=items(2000), sample=400, measures=COUNTS)
    figure = session.head.report["accuracy"]
    assert (figure.n, figure.total) == (400, 2000)
    assert figure.margin > 0
    assert "±" in figure.text()
    report = session.evaluate(all=True)
    assert (report["accuracy"].n, report["accuracy"].total, report["accuracy"].margin) == (2000, None, None)
    assert report["parameters"].value == session.head["parameters"]


def test_the_margin_of_a_mean_is_that_of_the_textbook():
    """± t · s / sqrt(n) · sqrt(1 - n / N), up to the noise of 20 groups."""
    inputs, labels = items(2000)
    session = Session(zoo.mlp(), eval=(inputs, labels), sample=400, batch_size=8, measures=COUNTS)
    share = session.head["accuracy"]
    expected = 1.96 * (share * (1 - share) / 400) ** 0.5 * (1 - 400 / 2000) ** 0.5
    assert session.head.report["accuracy"].margin == pytest.approx(expected, rel=0.4)


@pytest.mark.parametrize("metric", [None, "own"])
def test_the_interval_holds_the_figure_of_all_data_about_as_often_as_it_says(metric):
    def own(predictions, labels):
        """No mean: the largest share of right answers of a class."""
        right = predictions.argmax(-1) == labels
        return max(float(right[labels == each].float().mean()) for each in range(4))

    inside = 0
    for seed in range(20):
        given = {} if metric is None else {"metric": own}
        session = Session(zoo.mlp(), eval=items(1200, seed), sample=400, batch_size=8, measures=("quality",), **given)
        figure = session.head.report[session.task.metric]
        inside += abs(session.evaluate(all=True)[figure.name].value - figure.value) <= figure.margin
    assert inside >= (16 if metric is None else 10)


def test_very_large_data_are_sampled_by_default_and_others_are_not():
    many = Data(list, "many", LARGE + 1)
    assert EvaluatedData.of(many, None).data.items == FIRST
    assert EvaluatedData.of(Data(list, "some", LARGE), None).total is None
    assert EvaluatedData.of(Data(list, "a stream"), 5).total is None
    assert EvaluatedData.of(Data(list, "some", 7), 7).total is None


@pytest.mark.parametrize("form", ["items", "batches"])
def test_a_sample_is_spread_over_the_data_and_the_same_each_time(form):
    inputs = torch.arange(1000.0)[:, None]
    data = adopt_data((inputs, None), batch_size=10) if form == "items" else adopt_data([(each, None) for each in inputs.split(10)])
    drawn = [torch.cat([batch.args[0] for batch in data.sample(100).batches()]).flatten() for _ in range(2)]
    assert torch.equal(*drawn)
    assert len(drawn[0].unique()) == 100
    quarters = torch.bincount((drawn[0] / 250).long(), minlength=4)
    assert quarters.min() >= 10


@pytest.mark.parametrize("sample", [0, -3, 1.5, "some"])
def test_a_sample_that_is_no_number_of_items_is_refused(sample):
    with pytest.raises(KdError, match="sample"):
        Session(zoo.mlp(), eval=items(40), sample=sample)
