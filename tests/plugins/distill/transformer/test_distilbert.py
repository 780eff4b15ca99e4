"""distill distilbert: three terms in their published shares, over the tokens that count."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.tasks import CausalLM, Classification, Embedding, TokenClassification
from kdkit.training import fit
from kdkit_distill.response.divergences import cosine_distance, soft_labels
from kdkit_distill.transformer.distilbert import DistilBert
from tests.fixtures import zoo
from tests.fixtures.lessons import fingerprint, weights
from tests.fixtures.sentences import attended, bert, context, curve, random, sentences

MASKED_LM = "BertForMaskedLM"


def masked(padding: int = 0) -> Batch:
    """Sentences of which every third token is to be guessed."""
    batch = sentences(padding)
    ids, real = batch.kwargs["input_ids"], batch.kwargs["attention_mask"].bool()
    guessed = real & (torch.arange(ids.shape[1]) % 3 == 1)
    return Batch(kwargs={**batch.kwargs, "input_ids": ids.masked_fill(guessed, 1)}, labels=ids.masked_fill(~guessed, -100))


# The objective -------------------------------------------------------------------------------------------------------


def test_it_is_one_less_the_cosine_written_out() -> None:
    student, teacher = random(2, 3, 4), random(2, 3, 4, seed=1)
    for item in range(2):
        for token in range(3):
            one, two = student[item, token].tolist(), teacher[item, token].tolist()
            cosine = sum(a * b for a, b in zip(one, two, strict=True)) / math.hypot(*one) / math.hypot(*two)
            assert cosine_distance(student, teacher)[item, token].item() == pytest.approx(1 - cosine, rel=1e-9)


def test_it_is_torchs_cosine_embedding_loss() -> None:
    student, teacher = random(6, 4), random(6, 4, seed=1)
    assert torch.allclose(cosine_distance(student, teacher), nn.functional.cosine_embedding_loss(student, teacher, torch.ones(6), reduction="none"))


def test_states_of_one_direction_give_zero_and_gradients_are_those_of_finite_differences() -> None:
    student, teacher = random(6, 4).requires_grad_(), random(6, 4, seed=1)
    assert torch.autograd.gradcheck(lambda rows: cosine_distance(rows, teacher), student)
    found = cosine_distance(student, 3 * student.detach())
    found.sum().backward()
    assert found.abs().max() < 1e-12
    assert student.grad.abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extreme_states_zeros_and_half_precision_stay_finite(dtype: torch.dtype) -> None:
    student = torch.tensor([[6e4, -6e4], [0.0, 0.0], [1e-7, 0.0]]).to(dtype).requires_grad_()
    found = cosine_distance(student, torch.tensor([[-6e4, 6e4], [1.0, 1.0], [1.0, 0.0]]).to(dtype))
    found.sum().backward()
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.tensor([2.0, 1.0, 0.0]), atol=1e-3)
    assert torch.isfinite(student.grad).all()


# The stage -----------------------------------------------------------------------------------------------------------


def expected(student: nn.Module, teacher: nn.Module, batch: Batch, counted: Tensor) -> dict[str, float]:
    """The three terms as the published code has them: means over selected tokens."""
    mine, theirs = attended(student, batch), attended(teacher, batch)
    real = batch.kwargs["attention_mask"].bool()
    soft = nn.KLDivLoss(reduction="batchmean")((mine.logits[counted] / 2).log_softmax(-1), (theirs.logits[counted] / 2).softmax(-1)) * 4
    cosine = nn.CosineEmbeddingLoss()(mine.hidden_states[-1][real], theirs.hidden_states[-1][real], torch.ones(int(real.sum())))
    label = nn.functional.cross_entropy(mine.logits.flatten(0, 1), batch.labels.flatten())
    return {"soft": float(soft), "cosine": float(cosine), "label": float(label)}


@pytest.mark.parametrize("tokens", ["attention", "labels"])
def test_its_terms_are_the_published_means_in_the_published_shares(tokens: str) -> None:
    student, teacher, batch = bert(1, name=MASKED_LM), bert(0, 4, name=MASKED_LM), masked()
    wanted = expected(student, teacher, batch, batch.kwargs["attention_mask"].bool() if tokens == "attention" else batch.labels != -100)
    figures = curve(DistilBert(steps=1, tokens=tokens), student, context(teacher, TokenClassification(), batch=batch))[0]
    assert {name: figures[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)
    assert figures["loss"] == pytest.approx((5 * wanted["soft"] + 2 * wanted["label"] + wanted["cosine"]) / 8, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["attention", "labels"])
@pytest.mark.parametrize(("padding", "size", "accumulate"), [(5, 8, 1), (0, 2, 4), (3, 4, 2)])
def test_padding_and_the_cut_of_a_step_change_nothing(tokens: str, padding: int, size: int, accumulate: int) -> None:
    teacher, results = bert(0, 3, 48, 6, name=MASKED_LM), []
    for pad, cut, times in ((0, 8, 1), (padding, size, accumulate)):
        student = bert(1, name=MASKED_LM)
        stage = DistilBert(steps=3, optimizer="sgd", learning_rate=0.05, accumulate=times, tokens=tokens)
        fit(student, [stage], context(teacher, TokenClassification(), size=cut, batch=masked(pad)))
        results.append(weights(student))
    assert torch.allclose(*results, atol=1e-5)
    assert not torch.allclose(results[0], weights(bert(1, name=MASKED_LM)), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("teacher", [{"blocks": 4}, {"blocks": 3, "width": 48, "heads": 6}])
def test_it_trains_and_leaves_the_teacher_as_it_was_and_no_projection_in_the_student(teacher: dict[str, int]) -> None:
    taught, student = bert(0, **teacher).train(), bert(1)
    before, names = fingerprint(taught), list(student.state_dict())
    seen = curve(DistilBert(epochs=20, learning_rate=5e-3), student, context(taught, batch=sentences(labels=True)))
    assert all(seen[-1][name] < 0.8 * seen[0][name] for name in ("soft", "cosine"))
    assert fingerprint(taught) == before
    assert list(student.state_dict()) == names


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
def test_causal_models_learn_too_and_from_themselves_begin_at_zero(model: str) -> None:
    student = zoo.MODELS[model]()
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    figures = curve(DistilBert(labels=False, steps=1), student, context(zoo.MODELS[model](), CausalLM(), batch=zoo.batch(model)))[0]
    assert figures["loss"] < 1e-6


def test_without_labels_soft_labels_and_cosine_share_the_loss() -> None:
    figures = curve(DistilBert(labels=False, steps=1, soft_weight=3), bert(1), context(bert(0)))[0]
    assert figures["loss"] == pytest.approx((3 * figures["soft"] + figures["cosine"]) / 4, rel=1e-4)


def test_soft_labels_are_those_of_distill_soft() -> None:
    student, teacher, batch = bert(1), bert(0), sentences()
    wanted = soft_labels(attended(student, batch).logits, attended(teacher, batch).logits, 3.0).mean()
    figures = curve(DistilBert(labels=False, steps=1, temperature=3), student, context(teacher))[0]
    assert figures["soft"] == pytest.approx(float(wanted), rel=1e-4)


def test_layers_can_be_named_also_of_nets_whose_attention_can_not_be_read() -> None:
    student, teacher = bert(1), bert(0, 4)
    last = curve(DistilBert(labels=False, steps=1), bert(1), context(teacher))[0]
    named = curve(DistilBert(labels=False, steps=1, layers=("bert.encoder.layer.1=bert.encoder.layer.3",)), student, context(teacher))[0]
    assert named["cosine"] == last["cosine"]


@pytest.mark.parametrize(
    ("stage", "run", "message"),
    [
        (DistilBert(labels=False), {"task": Embedding()}, "compares classes"),
        (DistilBert(labels=False, layers=("bert.pooler",)), {}, "both need the same tokens"),
        (DistilBert(), {}, "needs labels"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(stage: DistilBert, run: dict[str, Any], message: str) -> None:
    student = bert(1)
    before = weights(student)
    with pytest.raises(KdError, match=message):
        fit(student, [stage], context(bert(0), **run))
    assert torch.equal(weights(student), before)


def test_other_classes_are_refused() -> None:
    teacher = bert(0)
    teacher.classifier = nn.Linear(32, 5)
    with pytest.raises(KdError, match="the teacher has 5 classes, the student 2"):
        fit(bert(1), [DistilBert(labels=False)], context(teacher, Classification()))
