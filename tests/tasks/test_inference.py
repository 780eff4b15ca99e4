"""Inference of the task from outputs and labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.tasks import Classification, Embedding, MultiLabel, Regression, Segmentation, TokenClassification, infer_task
from tests.fixtures.outputs import padded, seeded


class Fixed(nn.Module):
    """A model of a given output shape."""

    def __init__(self, *shape: int, last: nn.Module | None = None):
        super().__init__()
        self.shape, self.last = shape, last or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.randn(len(x), *self.shape, generator=seeded(0)))


MASKS = (torch.arange(64) % 3 == 0).float().view(4, 1, 4, 4)
INTEGERS, FLOATS, BITS = torch.tensor([0, 1, 2, 1]), torch.tensor([0.5, 1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 1.0, 0.0])


GUESSES = [
    (Fixed(3), INTEGERS, Classification, "outputs (batch, 3) and integer labels"),
    (Fixed(1), INTEGERS.clamp(max=1), Classification, "outputs (batch, 1) and integer labels"),
    (Fixed(1), BITS, Classification, "labels of 0 and 1: two classes"),
    (Fixed(), BITS, Classification, "labels of 0 and 1: two classes"),
    (Fixed(1), FLOATS, Regression, "outputs (batch, 1) and float labels"),
    (Fixed(3), torch.rand(4, 3), Regression, "outputs (batch, 3) and float labels"),
    (Fixed(3), torch.rand(4, 3).softmax(-1), Classification, "labels that are probabilities"),
    (Fixed(3), torch.tensor([[1.0, 1.0, 0.0]] * 4), MultiLabel, "labels of 0 and 1 for each of them"),
    (Fixed(5, 3), torch.zeros(4, 5, dtype=torch.long), TokenClassification, "outputs (batch, 5, 3) and integer labels"),
    (Fixed(3, 8, 8), torch.zeros(4, 8, 8, dtype=torch.long), Segmentation, "integer labels"),
    (Fixed(3, 8, 8), torch.zeros(4, 1, 8, 8, dtype=torch.long), Segmentation, "integer labels"),
    (Fixed(1, 4, 4), MASKS, Segmentation, "masks of 0 and 1: two classes per pixel; set --task"),
    (Fixed(1, 4, 4), MASKS.squeeze(1), Segmentation, "masks of 0 and 1"),
    (Fixed(4, 4), MASKS.squeeze(1), Segmentation, "masks of 0 and 1"),
    (Fixed(2, 4, 4), MASKS, Segmentation, "masks of 0 and 1"),
    (Fixed(1, 4, 4), torch.zeros(4, 1, 4, 4), Segmentation, "masks of 0 and 1"),
    (Fixed(1, 4, 4), MASKS.long(), Segmentation, "integer labels"),
    (Fixed(1, 4, 4), 0.5 * MASKS, Regression, "float labels"),
    (Fixed(3, 4, 4), MASKS.expand(4, 3, 4, 4), MultiLabel, "labels of 0 and 1 for each of them"),
    (Fixed(3, 4, 4), F.one_hot(MASKS.long().squeeze(1), 3).movedim(-1, 1).float(), Segmentation, "labels that are probabilities"),
    (Fixed(6), torch.tensor([0.1, 0.1, 0.7, 0.7]), Embedding, "one score for every two items"),
    (Fixed(3), None, Classification, "no labels: assumed to be class scores; set --task"),
    (Fixed(1), None, Regression, "no labels: assumed to be a number; set --task"),
    (Fixed(5, 3), None, TokenClassification, "no labels: assumed to be class scores; set --task"),
]


@pytest.mark.parametrize(("model", "labels", "kind", "why"), GUESSES)
def test_a_task_is_guessed_from_outputs_and_labels_and_says_why(model: nn.Module, labels: Any, kind: type, why: str) -> None:
    found = infer_task(model, Batch((torch.zeros(4, 2),), labels=labels))
    assert type(found) is kind
    assert why in found.reason


@pytest.mark.parametrize(
    ("model", "ready"), [(Fixed(3, last=nn.Softmax(-1)), True), (Fixed(3, last=nn.LogSoftmax(-1)), False), (Fixed(3), False), (Fixed(1, last=nn.Sigmoid()), True)]
)
def test_outputs_that_are_probabilities_already_are_seen(model: nn.Module, ready: bool) -> None:
    found = infer_task(model, Batch((torch.zeros(4, 2),), labels=INTEGERS.clamp(max=1)))
    assert isinstance(found, Classification)
    assert found.probabilities is ready
    assert ("probabilities already" in found.reason) is ready


class Balanced(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([[1.5, -0.5, 0.0]]).expand(len(x), 3)


def test_logits_that_happen_to_sum_to_one_are_no_probabilities() -> None:
    assert not infer_task(Balanced(), Batch((torch.zeros(4, 2),), labels=INTEGERS)).probabilities  # type: ignore[attr-defined]


class FixedItems(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(7, len(x), 3)


def test_outputs_that_are_not_one_an_item_are_refused() -> None:
    with pytest.raises(KdError, match=r"FixedItems returns \(7, 2, 3\) for 2 items"):
        infer_task(FixedItems(), Batch((torch.zeros(4, 2),)))


def bert(head: str, **settings: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, **settings)
    return getattr(transformers, f"Bert{head}")(config)


HEADS = [
    ("ForSequenceClassification", {"num_labels": 3}, None, "classification", "accuracy"),
    ("ForSequenceClassification", {"num_labels": 1}, None, "regression", "rmse"),
    ("ForSequenceClassification", {"num_labels": 3, "problem_type": "multi_label_classification"}, None, "multilabel", "f1"),
    ("ForSequenceClassification", {"num_labels": 1, "problem_type": "multi_label_classification"}, None, "multilabel", "f1"),
    ("ForTokenClassification", {}, None, "token-classification", "accuracy"),
    ("ForMaskedLM", {}, None, "token-classification", "accuracy"),
    ("LMHeadModel", {"is_decoder": True}, None, "causal-lm", "perplexity"),
    ("Model", {}, None, "embedding", "cosine"),
    ("Model", {}, torch.tensor([0, 1]), "embedding", "neighbour_accuracy"),
]


@pytest.mark.parametrize(("head", "settings_", "labels", "name", "metric"), HEADS)
def test_the_heads_of_transformers_tell_their_task(head: str, settings_: dict, labels: Any, name: str, metric: str) -> None:
    found = infer_task(bert(head, **settings_), Batch(kwargs={"input_ids": torch.ones(2, 4, dtype=torch.long)}, labels=labels))
    assert (found.name, found.metric) == (name, metric)
    assert found.reason


def test_a_task_evaluates_a_real_model_whatever_its_batches() -> None:
    model = bert("Model").eval()
    sentences = [[5, 6, 7], [8, 9], [3, 4, 5, 6, 7]]
    alone = torch.cat([Embedding().prediction(batch.call(model), batch) for batch in (padded([sentence]) for sentence in sentences)])
    batch = padded(sentences)
    torch.testing.assert_close(Embedding().prediction(batch.call(model), batch), alone, atol=1e-5, rtol=1e-5)


MAPS = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("floats", [False, True])
def test_255_beside_classes_is_ignored_and_the_reason_states_it(classes: int, floats: bool) -> None:
    labels = (MAPS[:, 0] > 0).long().masked_fill(MAPS[:, 0] > 0.8, 255)
    if floats and classes == 3:
        return  # numbers of three values are a regression
    found = infer_task(nn.Conv2d(1, classes, 1), Batch((MAPS,), labels=labels.float() if floats else labels))
    assert (found.name, getattr(found, "ignore_index", None)) == ("segmentation", 255)
    assert "labels of 255 are ignored" in found.reason


def test_a_mask_of_0_and_255_is_refused_with_both_readings() -> None:
    batch = Batch((MAPS,), labels=255.0 * (MAPS[:, 0] > 0))
    net = nn.Conv2d(1, 1, 1)
    with pytest.raises(KdError, match=r"a label is 255") as caught:
        infer_task(net, batch).losses(net(MAPS), batch)
    assert "(mask > 0)" in str(caught.value)
