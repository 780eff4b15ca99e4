"""Regression and embeddings."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data
from kdkit.tasks import Embedding, Regression, nearest
from tests.fixtures.outputs import CASES, of_outputs, outputs, seeded


@given(seed=st.integers(0, 999), items=st.integers(2, 20), width=st.integers(1, 3), offset=st.sampled_from([0.0, 1e3]))
@settings(max_examples=30, deadline=None)
def test_regression_figures_are_their_formulas(seed: int, items: int, width: int, offset: float) -> None:
    random = numpy.random.default_rng(seed)
    true = (random.standard_normal((items, width)) + offset).astype("float32")
    # closer labels are equal but for rounding, and have no R²
    assume((true.astype("float64").var(0) > 1e-11 * (true.astype("float64") ** 2).mean(0)).all())
    given_ = (true + 0.3 * random.standard_normal((items, width))).astype("float32")
    figures = Regression().evaluate(outputs, of_outputs(torch.tensor(given_), torch.tensor(true)))
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
    assert "r2" not in Regression().evaluate(outputs, of_outputs(torch.rand(4, 1), torch.full((4,), 3.0)))


def test_regression_agreement_falls_with_the_relative_distance_and_is_zero_across_signs() -> None:
    one, two = torch.tensor([[1.0], [2.0], [0.0], [1.0]]), torch.tensor([[1.0], [1.0], [0.0], [-1.0]])
    assert Regression().agreement(one, two, Batch((one,))).tolist() == [1.0, 0.5, 1.0, 0.0]


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
    with pytest.raises(KdError, match=r"a batch is needed to find the padding"):
        Embedding().prediction({"last_hidden_state": torch.zeros(1, 2, 3)})


def test_vectors_as_labels_give_a_cosine() -> None:
    vectors, labels = torch.randn(5, 3, generator=seeded(0)), torch.randn(5, 3, generator=seeded(1))
    expected = [float(a @ b) / (math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))) for a, b in zip(vectors, labels, strict=True)]
    figures = Embedding().evaluate(outputs, of_outputs(vectors, labels))
    assert figures["cosine"] == pytest.approx(sum(expected) / 5, rel=1e-5)
    assert figures["loss"] == pytest.approx(1 - sum(expected) / 5, rel=1e-5)


def test_classes_as_labels_give_the_share_of_items_whose_nearest_is_of_their_class() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [0.9, 1.0]])
    assert nearest(vectors).tolist() == [1, 0, 3, 2, 3]
    assert nearest(vectors, chunk=2).tolist() == [1, 0, 3, 2, 3]
    assert Embedding().evaluate(outputs, of_outputs(vectors, torch.tensor([0, 0, 1, 1, 0]))) == {"neighbour_accuracy": 0.8}


def test_embeddings_without_labels_have_no_figure() -> None:
    assert Embedding().evaluate(outputs, adopt_data(torch.rand(4, 3))) == {}


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


def test_scores_of_pairs_are_ranked_by_spearman() -> None:
    stats = pytest.importorskip("scipy.stats")
    vectors, scores = torch.randn(24, 5, generator=seeded(7)), torch.randint(0, 6, (12,), generator=seeded(8)).float()
    cosines = torch.cosine_similarity(vectors[::2], vectors[1::2])
    figures = Embedding(metric="spearman").evaluate(outputs, adopt_data((vectors, scores.repeat_interleave(2)), batch_size=8))
    assert figures == pytest.approx({"spearman": float(stats.spearmanr(cosines.numpy(), scores.numpy()).statistic)})


def test_the_loss_of_a_pair_is_the_squared_distance_of_its_cosine_and_its_score() -> None:
    vectors, scores = torch.randn(6, 5, generator=seeded(7)), torch.tensor([0.5, 0.5, -1.0, -1.0, 0.0, 0.0])
    losses = Embedding().losses(vectors, Batch((vectors,), labels=scores))
    torch.testing.assert_close(losses, (torch.cosine_similarity(vectors[::2], vectors[1::2]) - scores[::2]).square().repeat_interleave(2))
    with pytest.raises(KdError, match="the score of a pair is 10"):
        Embedding().losses(vectors, Batch((vectors,), labels=10 * scores.abs()))
    with pytest.raises(KdError, match="5 items are no pairs"):
        Embedding().losses(vectors[:5], Batch((vectors[:5],), labels=scores[:5]))
