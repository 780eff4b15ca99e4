"""Classification of items, tokens and several classes at once, and causal language models."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdkit.data import Batch, Data
from kdkit.errors import KdError
from kdkit.tasks import CausalLM, Classification, MultiLabel, TokenClassification
from tests.fixtures.outputs import IGNORED, Bigram, of_outputs, outputs, padded, seeded


def naive_cross_entropy(logits: Tensor, label: int) -> float:
    exponents = [math.exp(value - max(logits.tolist())) for value in logits.tolist()]
    return -math.log(exponents[label] / sum(exponents))


def test_classification_losses_are_the_negative_log_probability_of_each_label() -> None:
    logits, labels = torch.randn(5, 4, generator=seeded(0)), torch.tensor([0, 3, 1, 2, 2])
    losses = Classification().losses(logits, Batch((logits,), labels=labels))
    assert losses.tolist() == pytest.approx([naive_cross_entropy(*row) for row in zip(logits, labels.tolist(), strict=True)], rel=1e-5)


def test_accuracy_is_the_share_of_right_answers() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    figures = Classification().evaluate(outputs, of_outputs(logits, torch.tensor([0, 1, 1])))
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
    assert Classification().evaluate(outputs, of_outputs(logits, labels)) == pytest.approx(Classification().evaluate(outputs, of_outputs(logits[some], labels[some])))


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


def naive_losses(model: Bigram, sentence: list[int]) -> list[float]:
    return [naive_cross_entropy(model.table[token], following) for token, following in itertools.pairwise(sentence)]


SENTENCES = st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=6), min_size=1, max_size=6)


@pytest.mark.slow
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


def test_causal_losses_are_at_the_position_that_predicts() -> None:
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


def test_a_causal_model_without_token_numbers_is_reported() -> None:
    with pytest.raises(KdError, match="causal-lm needs token ids"):
        CausalLM().losses(torch.zeros(2, 3, 4), Batch((torch.zeros(2, 3),)))


def test_multilabel_figures_are_those_of_all_decisions() -> None:
    logits = torch.tensor([[2.0, -1.0, 1.0], [-1.0, -2.0, 3.0]])
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    figures = MultiLabel().evaluate(outputs, of_outputs(logits, labels))
    hits, false_alarms, misses = 2, 1, 1
    assert figures["f1"] == pytest.approx(2 * hits / (2 * hits + false_alarms + misses))
    assert figures["accuracy"] == pytest.approx(4 / 6)
    assert figures["loss"] == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, labels)), rel=1e-5)
