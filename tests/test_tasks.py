"""Tasks: every loss and figure against the formula written out, whatever the padding, the batching and the precision."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdkit import hookimpl
from kdkit.data import Batch, Data, adopt_data
from kdkit.errors import KdError
from kdkit.plugins import manager
from kdkit.tasks import CausalLM, Classification, Embedding, MultiLabel, Regression, Task, TokenClassification, guess_task, nearest, task, tasks, tensor_of

IGNORED = -100


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def outputs(batch: Batch) -> Tensor:
    """A model that says what it is given."""
    return batch.args[0]


def said(inputs: Tensor, labels: Any) -> Data:
    """Data whose inputs are already the model's outputs."""
    return adopt_data((inputs, labels))


# classification


def naive_cross_entropy(logits: Tensor, label: int) -> float:
    exponents = [math.exp(value - max(logits.tolist())) for value in logits.tolist()]
    return -math.log(exponents[label] / sum(exponents))


def test_classification_losses_are_the_negative_log_probability_of_each_label() -> None:
    logits, labels = torch.randn(5, 4, generator=seeded(0)), torch.tensor([0, 3, 1, 2, 2])
    losses = Classification().losses(logits, Batch((logits,), labels=labels))
    assert losses.tolist() == pytest.approx([naive_cross_entropy(*row) for row in zip(logits, labels.tolist(), strict=True)], rel=1e-5)


def test_accuracy_is_the_share_of_right_answers() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    figures = Classification().evaluate(outputs, said(logits, torch.tensor([0, 1, 1])))
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["loss"] == pytest.approx(sum(naive_cross_entropy(*row) for row in zip(logits, [0, 1, 1], strict=True)) / 3, rel=1e-5)


def test_soft_labels_give_the_cross_entropy_of_two_distributions() -> None:
    logits, shares = torch.randn(3, 4, generator=seeded(0)), torch.rand(3, 4, generator=seeded(1))
    shares /= shares.sum(-1, keepdim=True)
    losses = Classification().losses(logits, Batch((logits,), labels=shares))
    expected = [sum(float(share) * naive_cross_entropy(row, index) for index, share in enumerate(each)) for row, each in zip(logits, shares, strict=True)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("labels", [torch.tensor([1, 0, 1]), torch.tensor([[1], [0], [1]]), torch.tensor([1.0, 0.0, 1.0]), torch.tensor([[1.0], [0.0], [1.0]])])
@pytest.mark.parametrize("flat", [True, False])
def test_a_single_logit_has_the_logistic_loss(labels: Tensor, flat: bool) -> None:
    logits = torch.tensor([[2.0], [0.5], [-1.0]])
    output = logits[:, 0] if flat else logits
    batch = Batch((logits,), labels=labels)
    expected = F.binary_cross_entropy_with_logits(logits, labels.float().view(-1, 1), reduction="none")[:, 0]
    torch.testing.assert_close(Classification().losses(output, batch), expected)
    assert Classification().scores(output, batch)["accuracy"].tolist() == [1.0, 0.0, 0.0]
    assert Classification().prediction(output).shape == (3, 2)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_probabilities_give_the_same_loss_as_the_logits_they_came_from(classes: int) -> None:
    logits = torch.randn(4, classes, generator=seeded(0))
    batch = Batch((logits,), labels=torch.randint(0, max(classes, 2), (4,), generator=seeded(1)))
    shares = logits.sigmoid() if classes == 1 else logits.softmax(-1)
    torch.testing.assert_close(Classification(probabilities=True).losses(shares, batch), Classification().losses(logits, batch))


def test_a_certain_and_wrong_probability_has_a_finite_loss() -> None:
    batch = Batch((torch.zeros(1, 2),), labels=torch.tensor([1]))
    assert Classification(probabilities=True).losses(torch.tensor([[1.0, 0.0]]), batch).isfinite().all()


def test_items_without_a_label_do_not_count() -> None:
    logits, labels = torch.randn(6, 3, generator=seeded(0)), torch.tensor([0, IGNORED, 1, IGNORED, IGNORED, 2])
    batch, some = Batch((logits,), labels=labels), labels != IGNORED
    assert Classification().losses(logits, batch)[~some].tolist() == [0.0] * 3
    assert Classification().count(batch) == 3
    assert Classification().mask(batch) is None
    assert Classification().labelled(batch).tolist() == some.tolist()  # type: ignore[union-attr]
    assert Classification().evaluate(outputs, said(logits, labels)) == pytest.approx(Classification().evaluate(outputs, said(logits[some], labels[some])))


# tokens and pixels


def test_token_classification_counts_neither_padding_nor_ignored_labels() -> None:
    logits = torch.randn(2, 4, 3, generator=seeded(0))
    labels, mask = torch.tensor([[0, 1, IGNORED, 2], [2, 1, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch = Batch((), {"logits": logits, "attention_mask": mask}, labels)
    counted = [(0, 0), (0, 1), (0, 3), (1, 0), (1, 1)]
    expected = [naive_cross_entropy(logits[where], int(labels[where])) for where in counted]
    right = [int(logits[where].argmax() == labels[where]) for where in counted]
    assert TokenClassification().count(batch) == 5
    figures = TokenClassification().evaluate(lambda batch: batch.kwargs["logits"], Data(lambda: [batch], "two items"))
    assert figures == pytest.approx({"loss": sum(expected) / 5, "accuracy": sum(right) / 5}, rel=1e-5)


def test_pixels_are_tokens() -> None:
    logits, labels = torch.randn(2, 3, 4, 5, generator=seeded(0)), torch.randint(0, 3, (2, 4, 5), generator=seeded(1))
    losses = TokenClassification().losses(logits, Batch((logits,), labels=labels))
    torch.testing.assert_close(losses.view(2, 4, 5), F.cross_entropy(logits, labels, reduction="none"))
    assert TokenClassification().prediction(logits).shape == (2, 20, 3)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (Batch(kwargs={"input_ids": torch.ones(1, 3, dtype=torch.long), "attention_mask": torch.tensor([[1, 1, 0]])}), [[True, True, False]]),
        (Batch(kwargs={"input_ids": torch.ones(1, 3, dtype=torch.long)}), [[True, True, True]]),
        (Batch((torch.ones(1, 2, dtype=torch.long),)), [[True, True]]),
        (Batch((torch.ones(1, 2, dtype=torch.long),), labels=torch.tensor([[IGNORED, 1]])), [[False, True]]),
    ],
)
def test_without_labels_the_mask_of_tokens_is_what_is_not_padding(batch: Batch, expected: list) -> None:
    assert TokenClassification().mask(batch).tolist() == expected  # type: ignore[union-attr]


# causal language models


class Bigram(nn.Module):
    """Next-token logits from a table: position by position, so padding can't reach the rest."""

    def __init__(self, vocabulary: int = 7):
        super().__init__()
        self.table = nn.Parameter(torch.randn(vocabulary, vocabulary, generator=seeded(0)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.table[input_ids]}


def naive_losses(model: Bigram, sentence: list[int]) -> list[float]:
    return [naive_cross_entropy(model.table[token], following) for token, following in itertools.pairwise(sentence)]


def padded(sentences: list[list[int]], left: bool = False, extra: int = 0, labels: bool = False) -> Batch:
    longest = max(map(len, sentences)) + extra
    rows, masks = [], []
    for sentence in sentences:
        gap = [0] * (longest - len(sentence))
        rows.append(gap + sentence if left else sentence + gap)
        masks.append(gap + [1] * len(sentence) if left else [1] * len(sentence) + gap)
    ids, mask = torch.tensor(rows), torch.tensor(masks)
    return Batch((), {"input_ids": ids, "attention_mask": mask}, ids.masked_fill(mask == 0, IGNORED) if labels else None)


SENTENCES = st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=6), min_size=1, max_size=6)


@given(sentences=SENTENCES, left=st.booleans(), extra=st.integers(0, 3), labels=st.booleans(), size=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_perplexity_is_that_of_the_unpadded_sentences_however_they_are_padded_and_batched(sentences: list, left: bool, extra: int, labels: bool, size: int) -> None:
    model = Bigram()
    losses = [loss for sentence in sentences for loss in naive_losses(model, sentence)]
    batches = [padded(sentences[start : start + size], left, extra, labels) for start in range(0, len(sentences), size)]
    figures = CausalLM().evaluate(lambda batch: batch.call(model), Data(lambda: batches, "sentences"))
    assert figures["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert sum(CausalLM().count(batch) for batch in batches) == len(losses)


def test_causal_losses_stand_at_the_position_that_predicts() -> None:
    model, batch = Bigram(), padded([[1, 2, 3], [4, 5]])
    losses = CausalLM().losses(batch.call(model), batch)
    assert losses.shape == (2, 3)
    assert losses[0, :2].tolist() == pytest.approx(naive_losses(model, [1, 2, 3]), rel=1e-5)
    assert losses[:, 2].tolist() == [0.0, 0.0]
    assert CausalLM().mask(batch).tolist() == [[True, True, False], [True, False, False]]


def test_a_prompt_labelled_as_ignored_does_not_count() -> None:
    model = Bigram()
    batch = Batch(kwargs={"input_ids": torch.tensor([[1, 2, 3, 4]])}, labels=torch.tensor([[IGNORED, IGNORED, 3, 4]]))
    losses = CausalLM().losses(batch.call(model), batch)
    assert losses.sum().item() == pytest.approx(sum(naive_losses(model, [1, 2, 3, 4])[1:]), rel=1e-5)
    assert CausalLM().count(batch) == 2


def test_the_causal_loss_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, pad_token_id=0)
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(3, 32, (3, 9), generator=seeded(0))
    labels = ids.clone()
    labels[:, :3] = IGNORED
    batch = Batch(kwargs={"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels=labels)
    with torch.no_grad():
        expected = float(model(**batch.kwargs, labels=labels).loss)
        figures = CausalLM().evaluate(lambda batch: batch.call(model), Data(lambda: [batch], "tokens"))
    assert figures["loss"] == pytest.approx(expected, rel=1e-5)


def test_logits_of_virtual_tokens_in_front_are_left_out() -> None:
    batch = padded([[1, 2, 3]])
    logits = Bigram()(**batch.kwargs)["logits"]
    longer = torch.cat([torch.randn(1, 4, 7), logits], 1)
    torch.testing.assert_close(CausalLM().losses({"logits": longer}, batch), CausalLM().losses({"logits": logits}, batch))


def test_a_causal_model_without_token_numbers_is_told() -> None:
    with pytest.raises(KdError, match="causal-lm needs token numbers"):
        CausalLM().losses(torch.zeros(2, 3, 4), Batch((torch.zeros(2, 3),)))


# several classes at once


def test_multilabel_figures_are_those_of_all_decisions() -> None:
    logits = torch.tensor([[2.0, -1.0, 1.0], [-1.0, -2.0, 3.0]])
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    figures = MultiLabel().evaluate(outputs, said(logits, labels))
    hits, false_alarms, misses = 2, 1, 1
    assert figures["f1"] == pytest.approx(2 * hits / (2 * hits + false_alarms + misses))
    assert figures["accuracy"] == pytest.approx(4 / 6)
    assert figures["loss"] == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, labels)), rel=1e-5)


# numbers


@given(seed=st.integers(0, 999), items=st.integers(2, 20), width=st.integers(1, 3), offset=st.sampled_from([0.0, 1e3]))
@settings(max_examples=30, deadline=None)
def test_regression_figures_are_their_formulas(seed: int, items: int, width: int, offset: float) -> None:
    random = numpy.random.default_rng(seed)
    true = (random.standard_normal((items, width)) + offset).astype("float32")
    given_ = (true + 0.3 * random.standard_normal((items, width))).astype("float32")
    figures = Regression().evaluate(outputs, said(torch.tensor(given_), torch.tensor(true)))
    error, true64 = given_.astype("float64") - true, true.astype("float64")
    r2 = 1 - (error**2).sum(0) / ((true64 - true64.mean(0)) ** 2).sum(0)
    assert figures["rmse"] == pytest.approx(math.sqrt((error**2).mean()), rel=1e-6)
    assert figures["mae"] == pytest.approx(abs(error).mean(), rel=1e-6)
    assert figures["r2"] == pytest.approx(r2.mean(), rel=1e-4, abs=1e-4)
    assert figures["loss"] == pytest.approx(figures["rmse"] ** 2)


@pytest.mark.parametrize(("output", "labels"), [((4, 1), (4,)), ((4,), (4, 1)), ((4,), (4,)), ((4, 1), (4, 1))])
def test_a_column_and_a_row_of_numbers_are_never_crossed(output: tuple, labels: tuple) -> None:
    values = torch.arange(4.0)
    losses = Regression().losses((values + 1).view(output), Batch((values,), labels=values.view(labels)))
    assert losses.tolist() == [1.0] * 4


def test_r2_is_absent_where_all_labels_are_equal() -> None:
    assert "r2" not in Regression().evaluate(outputs, said(torch.rand(4, 1), torch.full((4,), 3.0)))


def test_regression_agreement_falls_with_the_relative_distance_and_is_zero_across_signs() -> None:
    one, two = torch.tensor([[1.0], [2.0], [0.0], [1.0]]), torch.tensor([[1.0], [1.0], [0.0], [-1.0]])
    assert Regression().agreement(one, two, Batch((one,))).tolist() == [1.0, 0.5, 1.0, 0.0]


# embeddings


def test_sentence_embeddings_are_the_mean_over_real_tokens() -> None:
    states = torch.randn(2, 4, 3, generator=seeded(0))
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    batch = Batch(kwargs={"input_ids": torch.ones(2, 4, dtype=torch.long), "attention_mask": mask})
    vectors = Embedding().prediction({"last_hidden_state": states, "pooler_output": states[:, 0]}, batch)
    torch.testing.assert_close(vectors, torch.stack([states[0, :2].mean(0), states[1].mean(0)]))
    states[0, 2:] = torch.nan
    torch.testing.assert_close(Embedding().prediction({"last_hidden_state": states}, batch)[0], states[0, :2].mean(0))
    torch.testing.assert_close(Embedding(pooling="cls").prediction({"last_hidden_state": states}, batch), states[:, 0])


def test_pooling_without_the_batch_is_an_error_and_not_a_wrong_mean() -> None:
    with pytest.raises(KdError, match=r"no batch that tells which are padding"):
        Embedding().prediction({"last_hidden_state": torch.zeros(1, 2, 3)})


def test_vectors_as_labels_give_a_cosine() -> None:
    vectors, labels = torch.randn(5, 3, generator=seeded(0)), torch.randn(5, 3, generator=seeded(1))
    expected = [float(a @ b) / (math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))) for a, b in zip(vectors, labels, strict=True)]
    figures = Embedding().evaluate(outputs, said(vectors, labels))
    assert figures["cosine"] == pytest.approx(sum(expected) / 5, rel=1e-5)
    assert figures["loss"] == pytest.approx(1 - sum(expected) / 5, rel=1e-5)


def test_classes_as_labels_give_the_share_of_items_whose_nearest_is_of_their_class() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [0.9, 1.0]])
    assert nearest(vectors).tolist() == [1, 0, 3, 2, 3]
    assert nearest(vectors, chunk=2).tolist() == [1, 0, 3, 2, 3]
    assert Embedding().evaluate(outputs, said(vectors, torch.tensor([0, 0, 1, 1, 0]))) == {"neighbour_accuracy": 0.8}


def test_embeddings_without_labels_have_no_figure() -> None:
    assert Embedding().evaluate(outputs, adopt_data(torch.rand(4, 3))) == {}


# what holds for every task

CASES: dict[str, tuple[Task, Callable[[int], tuple[Tensor, Tensor]]]] = {
    "classification": (Classification(), lambda items: (torch.randn(items, 4), torch.randint(0, 4, (items,)))),
    "tokens": (TokenClassification(), lambda items: (torch.randn(items, 3, 4), torch.randint(0, 4, (items, 3)).masked_fill(torch.rand(items, 3) < 0.3, IGNORED))),
    "multilabel": (MultiLabel(), lambda items: (torch.randn(items, 4), torch.randint(0, 2, (items, 4)).float())),
    "regression": (Regression(), lambda items: (torch.randn(items, 2), torch.randn(items, 2))),
    "embedding": (Embedding(), lambda items: (torch.randn(items, 4), torch.randn(items, 4))),
    "neighbours": (Embedding(), lambda items: (torch.randn(items, 4), torch.randint(0, 2, (items,)))),
    "given loss": (task(Regression(), loss=nn.HuberLoss()), lambda items: (torch.randn(items, 2), torch.randn(items, 2))),
}


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
    assert kind.evaluate(outputs, said(values, torch.zeros(4)))["loss"] == (2**24 + 3) / 4


@pytest.mark.parametrize("case", [case for case in CASES if case != "neighbours"])
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_have_float32_losses_of_the_numbers_they_hold(case: str, precision: torch.dtype) -> None:
    kind, make = CASES[case]
    torch.manual_seed(0)
    inputs, labels = make(8)
    rough = (10 * inputs).to(precision)
    losses = kind.losses(rough, Batch((inputs,), labels=labels))
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, kind.losses(rough.float(), Batch((inputs,), labels=labels)))


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
        Classification().evaluate(outputs, said(torch.zeros(2, 3), torch.tensor([IGNORED, IGNORED])))


@pytest.mark.parametrize("output", [None, {}, {"loss": torch.tensor(1.0)}, (1, 2)])
def test_an_output_without_a_tensor_is_refused(output: Any) -> None:
    with pytest.raises(KdError, match="no tensor in the model's output"):
        tensor_of(output)


# a loss and a metric of the user's own


def test_a_given_loss_is_trained_on_and_reported() -> None:
    values, labels = torch.tensor([[1.0], [5.0]]), torch.tensor([0.0, 0.0])
    kind = task("regression", loss=nn.HuberLoss(delta=2.0))
    assert kind.losses(values, Batch((values,), labels=labels)).tolist() == [0.5, 8.0]
    figures = kind.evaluate(outputs, said(values, labels))
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


def hits(predictions: Tensor, labels: Tensor) -> Tensor:
    return (predictions.argmax(-1) == labels).sum()


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
    data = said(logits, labels)
    own = Classification().evaluate(outputs, data)["accuracy"]
    assert task("classification", metric=metrics.accuracy_score).evaluate(outputs, data)["accuracy_score"] == pytest.approx(own)
    expected = metrics.roc_auc_score(labels.numpy(), (logits[:, 1] - logits[:, 0]).numpy())
    assert task("classification", metric=metrics.roc_auc_score).evaluate(outputs, data)["roc_auc_score"] == pytest.approx(expected)
    noise = said(logits[:, :1], logits[:, :1] + 1)
    assert task("regression", metric=metrics.mean_absolute_error).evaluate(outputs, noise)["mean_absolute_error"] == pytest.approx(1, rel=1e-5)


def test_a_metric_that_is_no_number_is_refused() -> None:
    def pairs(predictions: Tensor, labels: Tensor) -> tuple:
        return (1, 2)

    with pytest.raises(KdError, match="the metric pairs gave tuple, not a number"):
        task("regression", metric=pairs).evaluate(outputs, said(torch.zeros(2, 1), torch.zeros(2)))


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


# by name


def test_tasks_are_found_by_name_and_plugins_bring_their_own() -> None:
    class Plugin:
        @hookimpl
        def kdkit_tasks(self) -> list:
            return [Regression("depth")]

    assert {"classification", "token-classification", "multilabel", "regression", "embedding", "causal-lm"} <= set(tasks())
    manager().register(Plugin(), "depth")
    try:
        assert task("depth").name == "depth"
    finally:
        manager().unregister(name="depth")
    with pytest.raises(KdError, match="no task 'depth'"):
        task("depth")


def test_an_unknown_task_is_answered_with_the_nearest() -> None:
    with pytest.raises(KdError, match="no task 'clasification'") as caught:
        task("clasification")
    assert "classification" in caught.value.hints[0]


# guessing


class Fixed(nn.Module):
    """A model of a given output shape."""

    def __init__(self, *shape: int, last: nn.Module | None = None):
        super().__init__()
        self.shape, self.last = shape, last or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.randn(len(x), *self.shape, generator=seeded(0)))


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
    (Fixed(3, 8, 8), torch.zeros(4, 8, 8, dtype=torch.long), TokenClassification, "integer labels"),
    (Fixed(3), None, Classification, "no labels: taken for scores of classes; say --task"),
    (Fixed(1), None, Regression, "no labels: taken for a number; say --task"),
    (Fixed(5, 3), None, TokenClassification, "no labels: taken for scores of classes; say --task"),
]


@pytest.mark.parametrize(("model", "labels", "kind", "why"), GUESSES)
def test_a_task_is_guessed_from_outputs_and_labels_and_says_why(model: nn.Module, labels: Any, kind: type, why: str) -> None:
    found = guess_task(model, Batch((torch.zeros(4, 2),), labels=labels))
    assert type(found) is kind
    assert why in found.why


@pytest.mark.parametrize(
    ("model", "ready"), [(Fixed(3, last=nn.Softmax(-1)), True), (Fixed(3, last=nn.LogSoftmax(-1)), False), (Fixed(3), False), (Fixed(1, last=nn.Sigmoid()), True)]
)
def test_outputs_that_are_probabilities_already_are_seen(model: nn.Module, ready: bool) -> None:
    found = guess_task(model, Batch((torch.zeros(4, 2),), labels=INTEGERS.clamp(max=1)))
    assert isinstance(found, Classification)
    assert found.probabilities is ready
    assert ("probabilities already" in found.why) is ready


class Balanced(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([[1.5, -0.5, 0.0]]).expand(len(x), 3)


def test_logits_that_happen_to_sum_to_one_are_no_probabilities() -> None:
    assert not guess_task(Balanced(), Batch((torch.zeros(4, 2),), labels=INTEGERS)).probabilities  # type: ignore[attr-defined]


class FixedItems(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(7, len(x), 3)


def test_outputs_that_are_not_one_an_item_are_refused() -> None:
    with pytest.raises(KdError, match=r"FixedItems gives \(7, 2, 3\) for 2 items"):
        guess_task(FixedItems(), Batch((torch.zeros(4, 2),)))


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
    found = guess_task(bert(head, **settings_), Batch(kwargs={"input_ids": torch.ones(2, 4, dtype=torch.long)}, labels=labels))
    assert (found.name, found.metric) == (name, metric)
    assert found.why


def test_a_task_evaluates_a_real_model_whatever_its_batches() -> None:
    model = bert("Model").eval()
    sentences = [[5, 6, 7], [8, 9], [3, 4, 5, 6, 7]]
    alone = torch.cat([Embedding().prediction(batch.call(model), batch) for batch in (padded([sentence]) for sentence in sentences)])
    batch = padded(sentences)
    torch.testing.assert_close(Embedding().prediction(batch.call(model), batch), alone, atol=1e-5, rtol=1e-5)
