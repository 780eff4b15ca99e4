"""Which of a model's outputs its task evaluates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.session.session import Session
from kdkit.tasks import infer_task, main_tensor, output_tensors


class Net(nn.Module):
    """8 features, and 4 logits that are computed from them or beside them; `form` arranges both."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any], beside: bool = False, classes: int = 4):
        super().__init__()
        self.form, self.beside = form, beside
        self.body, self.head = nn.Linear(4, 8), nn.Linear(4 if beside else 8, classes)

    def forward(self, x: Tensor) -> Any:
        features = self.body(x)
        return self.form(features, self.head(x if self.beside else features.relu()))


LABELS = torch.arange(8) % 4
FORMS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "features first": (lambda features, logits: (features, logits), "1"),
    "features last": (lambda features, logits: (logits, features), "0"),
    "a list of features first, as RepDistiller's nets return": (lambda features, logits: ([features, features + 1], logits), "1"),
    "a mapping without a standard name": (lambda features, logits: {"embedding": features, "scores": logits}, "scores"),
    "a tuple within a tuple": (lambda features, logits: (features, (logits, features)), "1.0"),
    "a standard name": (lambda features, logits: {"features": features, "logits": logits}, ""),
    "a single one": (lambda features, logits: (logits,), ""),
}


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_output_that_fits_the_labels_is_evaluated_and_stated(form: str, beside: bool) -> None:
    arrange, place = FORMS[form]
    net = Net(arrange, beside)
    task = infer_task(net, Batch((torch.randn(8, 4),), labels=LABELS))
    assert (task.name, task.output) == ("classification", place)
    assert task.prediction(net(torch.randn(8, 4))).shape == (8, 4)
    assert (f"output {place}" in task.remark) is bool(place)


def test_the_outputs_of_a_later_head_count_also_if_the_first_batch_shows_few_classes() -> None:
    task = infer_task(Net(lambda features, logits: (features, logits), classes=10), Batch((torch.randn(8, 4),), labels=LABELS % 2))
    assert task.output == "1"


def test_float_labels_choose_the_output_of_their_shape() -> None:
    net = Net(lambda features, logits: (features, logits), beside=True)
    assert infer_task(net, Batch((torch.randn(8, 4),), labels=torch.randn(8, 8))).output == "0"
    assert infer_task(net, Batch((torch.randn(8, 4),), labels=torch.randn(8, 4))).output == "1"


@pytest.mark.parametrize("task", [None, "classification"])
def test_a_session_reports_the_figures_of_the_chosen_output_and_says_which(task: str | None) -> None:
    net = Net(lambda features, logits: (features, logits), beside=True)
    with torch.no_grad():
        net.head.weight.copy_(torch.eye(4))
        net.head.bias.zero_()
    data = (torch.eye(4).repeat(2, 1), LABELS)
    session = Session(net, train=data, eval=data, task=task, measures=("quality",))
    assert session.head["accuracy"] == 1
    assert "output 1" in str(session.status())
    trained = session.run("tune finetune --steps 4")
    assert trained["accuracy"] == 1
    assert torch.equal(trained.model.body.weight, net.body.weight)  # type: ignore[union-attr]
    assert Session(net, eval=data, output="0", task=task, measures=("quality",)).head["accuracy"] < 1


@pytest.mark.parametrize(("output", "reported"), [("2", "no output '2'"), ("logits", "no output 'logits'")])
def test_an_output_that_the_model_does_not_have_is_refused_with_those_it_has(output: str, reported: str) -> None:
    with pytest.raises(KdError, match=reported) as caught:
        Session(Net(lambda features, logits: (features, logits)), eval=(torch.eye(4), torch.arange(4)), output=output)
    assert "0 (batch, 8), 1 (batch, 4)" in str(caught.value)


def test_an_output_of_one_tensor_needs_no_place() -> None:
    assert main_tensor(torch.ones(2, 3), place="1").shape == (2, 3)
    assert list(output_tensors([torch.ones(2), None, "text"])) == ["0"]
