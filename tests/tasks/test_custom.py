"""A loss and a metric of the user's own."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkit.data import Batch, Data
from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data
from kdkit.session.task_lookup import task
from kdkit.tasks import CausalLM, Classification, Regression
from kdkit.training.loss_history import LossHistory
from kdkit.training.objective import Counts, Objective
from kdkit.training.part import Step, Term, TrainPart
from tests.fixtures.outputs import IGNORED, Bigram, hits, of_outputs, outputs, padded, seeded


def test_a_given_loss_is_trained_on_and_reported() -> None:
    values, labels = torch.tensor([[1.0], [5.0]]), torch.tensor([0.0, 0.0])
    kind = task("regression", loss=nn.HuberLoss(delta=2.0))
    assert kind.losses(values, Batch((values,), labels=labels)).tolist() == [0.5, 8.0]
    figures = kind.evaluate(outputs, of_outputs(values, labels))
    assert figures["loss"] == pytest.approx(4.25)
    assert figures["rmse"] == pytest.approx(math.sqrt(13))
    assert isinstance(kind, Regression)
    assert kind.metric == "rmse"


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        F.cross_entropy,
        lambda prediction, labels: F.cross_entropy(prediction, labels, reduction="none"),
        lambda prediction, labels: -prediction.log_softmax(-1).gather(-1, labels[:, None]),
    ],
)
def test_losses_of_every_shape_come_out_one_an_item(loss: Callable) -> None:
    logits, labels = torch.randn(4, 3, generator=seeded(0)), torch.tensor([0, 1, 2, 0])
    losses = task("classification", loss=loss).losses(logits, Batch((logits,), labels=labels))
    torch.testing.assert_close(losses, Classification().losses(logits, Batch((logits,), labels=labels)))


def test_a_loss_that_is_one_number_stands_for_every_item() -> None:
    logits, labels = torch.randn(4, 3, generator=seeded(0)), torch.tensor([0, 1, 2, 0])
    losses = task("classification", loss=lambda prediction, labels: F.cross_entropy(prediction, labels)).losses(logits, Batch((logits,), labels=labels))
    assert losses.tolist() == [pytest.approx(float(F.cross_entropy(logits, labels)))] * 4


def test_the_users_loss_object_is_left_as_it_was() -> None:
    loss = nn.MSELoss()
    task("regression", loss=loss)
    assert loss.reduction == "mean"


@pytest.mark.parametrize(
    ("loss", "message"),
    [(lambda prediction, labels: 1.0, "gave float, not a tensor"), (lambda prediction, labels: torch.zeros(7), r"gave \(7,\) for 4 items")],
)
def test_a_loss_that_gives_no_loss_is_refused(loss: Callable, message: str) -> None:
    with pytest.raises(KdError, match=message):
        task("regression", loss=loss).losses(torch.zeros(4, 1), Batch((torch.zeros(4, 1),), labels=torch.zeros(4)))


def test_a_given_metric_is_asked_once_over_the_whole_set_and_is_the_figure_of_comparison() -> None:
    asked = []

    def right(predictions: Tensor, labels: Tensor) -> Tensor:
        asked.append(tuple(predictions.shape))
        return hits(predictions, labels)

    kind = task("classification", metric=right)
    figures = kind.evaluate(outputs, adopt_data((torch.eye(5), torch.tensor([0, 1, 2, 0, IGNORED])), batch_size=2))
    assert asked == [(4, 5)]
    assert (kind.metric, kind.better) == ("right", "higher")
    assert figures["right"] == 3
    assert figures["accuracy"] == pytest.approx(0.75)
    assert next(iter(figures)) == "right"


def test_with_both_given_the_labels_may_be_of_any_form() -> None:
    kind = task(
        "regression", loss=lambda prediction, labels: (prediction[:, 0] - labels[0] - labels[1]).abs(), metric=lambda prediction, labels: float((labels[1]).sum())
    )
    data = Data(lambda: [(torch.zeros(2, 1), (torch.ones(2), torch.ones(2))), (torch.zeros(1, 1), (torch.ones(1), torch.ones(1)))], "pairs of labels")
    assert kind.evaluate(outputs, data) == {"lambda": 3.0, "loss": 2.0}


@pytest.mark.parametrize(
    ("name", "better"),
    [("accuracy", "higher"), ("word_error_rate", "lower"), ("hinge_loss", "lower"), ("LogLoss", "lower"), ("neg_mean_error", "higher"), ("gloss", "higher")],
)
def test_which_way_is_better_is_read_from_the_name(name: str, better: str) -> None:
    def metric(predictions: Tensor, labels: Tensor) -> float:
        return 0.0

    metric.__name__ = name
    assert task("regression", metric=metric).better == better
    metric.better = "lower"  # type: ignore[attr-defined]
    assert task("regression", metric=metric).better == "lower"
    assert task("regression", metric=metric, better="higher").better == "higher"


def test_metrics_of_scikit_learn_are_called_as_they_want() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    logits, labels = torch.randn(20, 2, generator=seeded(0)), torch.randint(0, 2, (20,), generator=seeded(1))
    data = of_outputs(logits, labels)
    own = Classification().evaluate(outputs, data)["accuracy"]
    assert task("classification", metric=metrics.accuracy_score).evaluate(outputs, data)["accuracy_score"] == pytest.approx(own)
    expected = metrics.roc_auc_score(labels.numpy(), (logits[:, 1] - logits[:, 0]).numpy())
    assert task("classification", metric=metrics.roc_auc_score).evaluate(outputs, data)["roc_auc_score"] == pytest.approx(expected)
    noise = of_outputs(logits[:, :1], logits[:, :1] + 1)
    assert task("regression", metric=metrics.mean_absolute_error).evaluate(outputs, noise)["mean_absolute_error"] == pytest.approx(1, rel=1e-5)


def test_a_metric_that_is_no_number_is_refused() -> None:
    def pairs(predictions: Tensor, labels: Tensor) -> tuple:
        return (1, 2)

    with pytest.raises(KdError, match="the metric pairs gave tuple, not a number"):
        task("regression", metric=pairs).evaluate(outputs, of_outputs(torch.zeros(2, 1), torch.zeros(2)))


def test_a_given_loss_leaves_the_perplexity_as_it_is() -> None:
    model, data = Bigram(), Data(lambda: [padded([[1, 2, 3], [4, 5]])], "sentences")
    kind = task("causal-lm", loss=lambda prediction, labels: prediction.square().mean(-1))
    own = CausalLM().evaluate(lambda batch: batch.call(model), data)
    figures = kind.evaluate(lambda batch: batch.call(model), data)
    assert figures["perplexity"] == own["perplexity"]
    assert figures["loss"] != own["loss"]


def test_a_task_with_a_given_loss_can_be_copied() -> None:
    kind = copy.deepcopy(task("regression", loss=nn.L1Loss()))
    assert kind.losses(torch.ones(2, 1), Batch((torch.ones(2, 1),), labels=torch.zeros(2))).tolist() == [1.0, 1.0]


# Class weights, ignored labels and label smoothing: the mean is torch's ---------------------------------------------------

WEIGHTS = torch.tensor([1.0, 5.0, 0.5])
CRITERIA: dict[str, Callable] = {
    "weights": nn.CrossEntropyLoss(weight=WEIGHTS),
    "weights and an ignored label": nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=2),
    "an ignored label beyond the classes": nn.CrossEntropyLoss(ignore_index=255),
    "weights and smoothing": nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.2, ignore_index=2),
    "a function with weights": functools.partial(F.cross_entropy, weight=WEIGHTS, ignore_index=0),
}
SHAPES: dict[str, tuple[str, Callable[[int], tuple[Tensor, Tensor]]]] = {
    "items": ("classification", lambda n: (torch.randn(n, 3, generator=seeded(0)), torch.randint(0, 3, (n,), generator=seeded(1)))),
    "pixels": ("segmentation", lambda n: (torch.randn(n, 3, 4, 5, generator=seeded(0)), torch.randint(0, 3, (n, 4, 5), generator=seeded(1)))),
    "pixels of a channel": ("segmentation", lambda n: (torch.randn(n, 3, 4, 5, generator=seeded(0)), torch.randint(0, 3, (n, 1, 4, 5), generator=seeded(1)))),
    "tokens": ("token-classification", lambda n: (torch.randn(n, 6, 3, generator=seeded(0)), torch.randint(0, 3, (n, 6), generator=seeded(1)))),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_mean_of_a_cross_entropy_is_torchs_whatever_the_batches(criterion: str, shape: str) -> None:
    name, make = SHAPES[shape]
    logits, labels = make(7)
    labels = labels.where(torch.rand(labels.shape, generator=seeded(2)) > 0.2, 255) if "beyond" in criterion else labels
    loss = CRITERIA[criterion]
    whole = (logits.movedim(-1, 1), labels) if shape == "tokens" else (logits, labels.reshape(labels.shape[0], *logits.shape[2:]))
    figures = task(name, loss=loss).evaluate(outputs, adopt_data((logits, labels), batch_size=3))
    assert figures["loss"] == pytest.approx(float(loss(*whole)), rel=1e-5)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_step_of_accumulated_batches_has_the_gradient_of_torchs_mean(criterion: str) -> None:
    x, labels = torch.randn(8, 4, generator=seeded(3)), torch.tensor([0, 1, 2, 1, 1, 0, 2, 2])
    net = nn.Linear(4, 3)
    loss = CRITERIA[criterion]
    expected = torch.autograd.grad(loss(net(x), labels), net.weight)[0]
    kind = task("classification", loss=loss)
    for size in (8, 2, 3):
        window = list(adopt_data((x, labels), batch_size=size).batches())
        counts = Counts.of(window, kind, [])
        objective = Objective({"one": Labels()}, LossHistory())
        steps = [Step(batch, batch.call(net), net, kind, 0, 0.0) for batch in window]
        total = sum(objective.loss(step, objective.terms(step, counts)) for step in steps)
        torch.testing.assert_close(torch.autograd.grad(total, net.weight)[0], expected)


class Labels(TrainPart):
    def terms(self, step: Step) -> Iterable[Term]:
        yield Term.from_labels(step)


BINARY = {
    "one logit": ("classification", lambda n: (torch.randn(n, 1, generator=seeded(0)), torch.randint(0, 2, (n,), generator=seeded(1)))),
    "one logit, labels of its shape": ("classification", lambda n: (torch.randn(n, 1, generator=seeded(0)), torch.randint(0, 2, (n, 1), generator=seeded(1)).float())),
    "a mask": ("segmentation", lambda n: (torch.randn(n, 1, 4, 5, generator=seeded(0)), torch.randint(0, 2, (n, 1, 4, 5), generator=seeded(1)).float())),
    "a mask without channel": ("segmentation", lambda n: (torch.randn(n, 1, 4, 5, generator=seeded(0)), torch.randint(0, 2, (n, 4, 5), generator=seeded(1)))),
    "several labels": ("multilabel", lambda n: (torch.randn(n, 3, generator=seeded(0)), torch.randint(0, 2, (n, 3), generator=seeded(1)).float())),
}


@pytest.mark.parametrize("form", BINARY)
@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)), F.binary_cross_entropy_with_logits])
def test_a_binary_loss_receives_the_models_own_output(form: str, loss: Callable) -> None:
    name, make = BINARY[form]
    logits, labels = make(7)
    figures = task(name, loss=loss).evaluate(outputs, adopt_data((logits, labels), batch_size=3))
    assert figures["loss"] == pytest.approx(float(loss(logits, labels.view(logits.shape).float())), rel=1e-5)


def test_a_loss_of_whole_masks_receives_maps_and_may_return_one_number_an_item() -> None:
    def dice(mask: Tensor, labels: Tensor) -> Tensor:
        share, axes = mask.sigmoid(), (1, 2, 3)
        return 1 - 2 * (share * labels).sum(axes) / (share + labels).sum(axes)

    logits, labels = BINARY["a mask"][1](6)
    kind = task("segmentation", loss=dice)
    losses = kind.losses(logits, Batch((logits,), labels=labels))
    torch.testing.assert_close(losses, dice(logits, labels)[:, None].expand(6, 20))
    assert kind.evaluate(outputs, adopt_data((logits, labels), batch_size=2))["loss"] == pytest.approx(float(dice(logits, labels).mean()), rel=1e-5)


def test_a_loss_and_a_metric_named_so_receive_the_models_own_output() -> None:
    logits, boxes, labels = torch.randn(7, 3, generator=seeded(0)), torch.randn(7, 4, generator=seeded(1)), torch.arange(7) % 3

    def detection(output: dict[str, Tensor], labels: Tensor) -> Tensor:
        return F.cross_entropy(output["logits"], labels, reduction="none") + output["boxes"].pow(2).mean(-1)

    def box_size(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        assert len(labels) == len(outputs["logits"]) == 7
        return outputs["boxes"].abs().max()

    def forward(batch: Batch) -> dict[str, Tensor]:
        return {"logits": batch.args[0], "boxes": batch.args[1]}

    kind = task("classification", loss=detection, metric=box_size)
    figures = kind.evaluate(forward, adopt_data(torch.utils.data.TensorDataset(logits, boxes, labels), batch_size=3))
    assert figures["box_size"] == pytest.approx(float(boxes.abs().max()))
    assert figures["loss"] == pytest.approx(float(detection({"logits": logits, "boxes": boxes}, labels).mean()), rel=1e-5)


def test_a_loss_that_fails_says_what_it_received_and_how_to_receive_the_whole_output() -> None:
    def mine(prediction: Tensor, labels: Tensor) -> Tensor:
        return prediction["boxes"]

    with pytest.raises(KdError, match="the loss mine failed: ") as raised:
        task("classification", loss=mine).losses({"logits": torch.zeros(2, 3)}, Batch((torch.zeros(2, 3),), labels=torch.zeros(2, dtype=torch.long)))
    assert raised.value.hints == ("it received (2, 3) and labels (2,)", "it receives the model's complete output if you name its first parameter `output`")


def test_a_metric_that_fails_says_what_it_received() -> None:
    def mine(output: Tensor, labels: Tensor) -> float:
        raise ValueError("no boxes")

    with pytest.raises(KdError, match="the metric mine failed: ValueError: no boxes") as raised:
        task("classification", metric=mine).evaluate(outputs, of_outputs(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)))
    assert raised.value.hints == ("it received (2, 3) and labels (2,)",)
