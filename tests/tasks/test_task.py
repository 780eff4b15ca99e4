"""What holds for every task: losses per item, figures independent of batching, agreement."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data
from kdkit.session.task_lookup import task
from kdkit.tasks import Classification, Embedding, MultiLabel, Regression, Task, TokenClassification, main_tensor
from tests.fixtures.outputs import CASES, IGNORED, of_outputs, outputs


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@given(seed=st.integers(0, 999), items=st.integers(3, 17), size=st.integers(1, 17))
@settings(max_examples=15, deadline=None)
def test_how_items_are_batched_moves_no_figure(case: str, seed: int, items: int, size: int) -> None:
    kind, make = CASES[case]
    torch.manual_seed(seed)
    inputs, labels = make(items)
    if (labels == IGNORED).all():
        return
    at_once = kind.evaluate(outputs, adopt_data((inputs, labels), batch_size=items))
    assert kind.evaluate(outputs, adopt_data((inputs, labels), batch_size=size)) == pytest.approx(at_once, rel=1e-6, abs=1e-9)


def test_small_losses_are_not_lost_beside_large_ones() -> None:
    values = torch.tensor([2.0**24, 1.0, 1.0, 1.0]).view(4, 1)
    kind = task("regression", loss=lambda prediction, labels: prediction[:, 0])
    assert kind.evaluate(outputs, of_outputs(values, torch.zeros(4)))["loss"] == (2**24 + 3) / 4


@pytest.mark.parametrize("case", [case for case in CASES if case != "neighbours"])
def test_losses_are_one_an_item_or_token_and_have_a_gradient_for_each(case: str) -> None:
    kind, make = CASES[case]
    torch.manual_seed(0)
    inputs, labels = make(6)
    inputs.requires_grad_()
    losses = kind.losses(inputs, Batch((inputs,), labels=labels))
    assert losses.shape in (labels.shape[:1], labels.shape[:2])
    losses[2].sum().backward()
    assert inputs.grad is not None
    assert inputs.grad[[0, 1, 3, 4, 5]].abs().sum() == 0
    assert kind.count(Batch((inputs,), labels=labels)) == (losses != 0).sum()


@pytest.mark.parametrize("case", CASES)
def test_a_model_agrees_with_itself(case: str) -> None:
    kind, make = CASES[case]
    torch.manual_seed(0)
    inputs, labels = make(6)
    agreement = kind.agreement(inputs, inputs, Batch((inputs,), labels=labels))
    torch.testing.assert_close(agreement, torch.ones(agreement.shape))
    assert agreement.shape[0] == 6
    assert kind.agreement(inputs, -inputs, Batch((inputs,), labels=labels)).mean() < 0.7


@pytest.mark.parametrize("kind", [Classification(), TokenClassification(), MultiLabel(), Regression(), Embedding()])
def test_labels_that_are_not_there_are_asked_for(kind: Task) -> None:
    with pytest.raises(KdError, match=f"{kind.name} needs labels, and the batch has none: float32") as caught:
        kind.losses(torch.zeros(2, 3), Batch((torch.zeros(2, 3),)))
    assert "labels" in caught.value.hints[0]


@pytest.mark.parametrize(
    ("kind", "output", "labels", "message"),
    [
        (Classification(), torch.zeros(2, 3), torch.tensor([0, 3]), "a label is 3, and the model has 3 classes"),
        (Classification(), torch.zeros(2, 3), torch.tensor([0, -1]), "a label is -1"),
        (Classification(), torch.zeros(2, 3), torch.tensor([0.5, 1.0]), "the labels are fractions"),
        (Classification(), torch.zeros(2, 3), torch.zeros(2, 4), r"labels \(2, 4\) do not fit outputs \(2, 3\)"),
        (MultiLabel(), torch.zeros(2, 3), torch.zeros(2), "do not fit"),
        (Regression(), torch.zeros(2, 3), torch.zeros(2), r"labels \(2, 1\) do not fit outputs \(2, 3\)"),
        (Embedding(), torch.zeros(2, 3), torch.zeros(2, 4), "do not fit vectors"),
    ],
)
def test_labels_that_do_not_fit_are_refused(kind: Task, output: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(KdError, match=message):
        kind.losses(output, Batch((output,), labels=labels))


def test_data_without_one_label_that_counts_is_an_error() -> None:
    with pytest.raises(KdError, match="not one label of arrays of"):
        Classification().evaluate(outputs, of_outputs(torch.zeros(2, 3), torch.tensor([IGNORED, IGNORED])))


@pytest.mark.parametrize("output", [None, {}, {"loss": torch.tensor(1.0)}, (1, 2)])
def test_an_output_without_a_tensor_is_refused(output: Any) -> None:
    with pytest.raises(KdError, match="no tensor in the model's output"):
        main_tensor(output)
