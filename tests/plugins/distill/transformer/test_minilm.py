"""distill minilm: relations of queries, keys and values against their formulas; the direction of KL and padding, which others get wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import CausalLM, Classification, Embedding
from kdkit.training import fit
from kdkit_distill.transformer.masks import seen_pairs
from kdkit_distill.transformer.minilm import MiniLM, attention_distributions, relation_heads, self_relations
from tests.fixtures import zoo
from tests.fixtures.lessons import fingerprint, weights
from tests.fixtures.sentences import REAL, attended, bert, context, curve, made, random, sentences


def softmax(row: list[float]) -> list[float]:
    shares = [math.exp(each - max(row)) for each in row]
    return [each / sum(shares) for each in shares]


def divergence(stated: list[float], asked: list[float]) -> float:
    """KL(asked ‖ said), of scores."""
    return sum(p * math.log(p / q) for p, q in zip(softmax(asked), softmax(stated), strict=True))


# The objectives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_the_formula_written_out_teacher_first(causal: bool) -> None:
    student, teacher = random(2, 4, 3, 3), random(2, 4, 3, 3, seed=1)
    for item, tokens in ((0, 3), (1, 2)):
        rows = [
            divergence(student[item, head, token, :seen].tolist(), teacher[item, head, token, :seen].tolist())
            for head in range(4)
            for token in range(tokens)
            for seen in [token + 1 if causal else tokens]
        ]
        assert attention_distributions(student, teacher, seen_pairs(REAL, causal))[item].item() == pytest.approx(sum(rows) / len(rows), rel=1e-9)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_relations_are_the_formula_written_out_in_heads_split_again(heads: int) -> None:
    student, teacher = random(2, 3, 8), random(2, 3, 12, seed=1)

    def scores(rows: Tensor, head: int, tokens: int) -> list[list[float]]:
        size = rows.shape[1] // heads
        part = rows[:tokens, head * size : (head + 1) * size].tolist()
        return [[sum(a * b for a, b in zip(one, two, strict=True)) / math.sqrt(size) for two in part] for one in part]

    for item, tokens in ((0, 3), (1, 2)):
        both = [(scores(student[item], head, tokens), scores(teacher[item], head, tokens)) for head in range(heads)]
        rows = [divergence(one, two) for mine, theirs in both for one, two in zip(mine, theirs, strict=True)]
        assert self_relations(student, teacher, REAL, heads)[item].item() == pytest.approx(sum(rows) / len(rows), rel=1e-9)


def test_the_teacher_comes_first_in_the_divergence() -> None:
    student, teacher, every = torch.tensor([[[[0.0, 0.0]]]]), torch.tensor([[[[0.0, 50.0]]]]), torch.ones(1, 1, 2, dtype=torch.bool)
    assert attention_distributions(student, teacher, every).item() == pytest.approx(math.log(2))
    assert attention_distributions(teacher, student, every).item() == pytest.approx(25 - math.log(2))


def test_its_gradient_is_the_difference_of_the_shares() -> None:
    student, teacher = random(1, 2, 3, 3).requires_grad_(), random(1, 2, 3, 3, seed=1)
    attention_distributions(student, teacher, torch.ones(1, 3, 3, dtype=torch.bool)).sum().backward()
    assert torch.allclose(student.grad, (student.softmax(-1) - teacher.softmax(-1)).detach() / 6, atol=1e-12)


def test_identical_signals_give_zero_and_gradients_are_those_of_finite_differences() -> None:
    student, teacher = random(2, 3, 4).requires_grad_(), random(2, 3, 4, seed=1)
    assert torch.autograd.gradcheck(lambda rows: self_relations(rows, teacher, REAL, 2), student)
    found = self_relations(student, student.detach(), REAL, 2)
    found.sum().backward()
    assert found.abs().max() < 1e-12
    assert student.grad.abs().max() < 1e-12


def test_what_is_in_the_padding_changes_nothing() -> None:
    student, teacher = random(2, 3, 4).requires_grad_(), random(2, 3, 4, seed=1)
    other = student.detach().clone()
    other[1, 2] = 1e4
    assert torch.equal(self_relations(student, teacher, REAL, 2), self_relations(other, teacher, REAL, 2))
    self_relations(student, teacher, REAL, 2).sum().backward()
    assert student.grad[1, 2].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_scores_half_precision_and_empty_sentences_stay_finite(dtype: torch.dtype) -> None:
    student, teacher = ((random(2, 3, 4, seed=seed) * 1e4).clamp(-6e4, 6e4).to(dtype) for seed in (0, 1))
    student.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = self_relations(student, teacher, REAL & torch.tensor([[True], [False]]), 2)
    found.sum().backward()
    assert found.dtype == torch.float32
    assert found[1] == 0
    assert torch.isfinite(found).all()
    assert torch.isfinite(student.grad).all()


def test_autocast_does_not_make_it_coarse() -> None:
    student, teacher = random(2, 3, 4).float(), random(2, 3, 4, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = self_relations(student, teacher, REAL, 2)
    assert torch.equal(found, self_relations(student, teacher, REAL, 2))


@pytest.mark.parametrize(("widths", "heads"), [((768, 768), 48), ((768, 384), 48), ((1024, 384), 32), ((384, 384), 48), ((32, 48), 4), ((64, 16), 2), ((7, 5), 1)])
def test_relation_heads_are_the_papers_where_they_fit(widths: tuple[int, ...], heads: int) -> None:
    assert relation_heads(*widths) == heads


# The stage -----------------------------------------------------------------------------------------------------------


def projected(model: nn.Module, block: int, name: str) -> Tensor:
    """Queries, keys or values of a block of a small BERT."""
    states = attended(model, sentences()).hidden_states[block]
    with torch.no_grad():
        return getattr(model.bert.encoder.layer[block].attention.self, name)(states)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [None, 1])
def test_its_terms_are_the_relations_of_the_last_block_and_the_teachers_named_one(layer: int | None) -> None:
    student, teacher, real = bert(1), bert(0, 4, 48, 6), sentences().kwargs["attention_mask"].bool()
    expected = {
        name: float(self_relations(projected(student, 1, name), projected(teacher, 3 if layer is None else layer, name), real, 2).mean())
        for name in ("query", "key", "value")
    }
    figures = curve(MiniLM(steps=1, relation_heads=2, teacher_layer=layer), student, context(teacher))[0]
    assert {name: figures[f"{name}-relation"] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert figures["loss"] == pytest.approx(sum(expected.values()), rel=1e-4)


@pytest.mark.slow
def test_the_first_version_compares_attention_and_values() -> None:
    student, teacher, batch = bert(1), bert(0, 4), sentences()
    real = batch.kwargs["attention_mask"].bool()
    mine, theirs = attended(student, batch).attentions[-1], attended(teacher, batch).attentions[-1]
    rows = (torch.xlogy(theirs, theirs) - theirs * mine.clamp_min(1e-30).log()).sum(-1).mean(1)
    attention = sum(float(row[keep].mean()) for row, keep in zip(rows, real, strict=True)) / 8
    value = float(self_relations(projected(student, 1, "value"), projected(teacher, 3, "value"), real, 4).mean())
    figures = curve(MiniLM(steps=1, compare="attention"), student, context(teacher))[0]
    assert figures["attention-relation"] == pytest.approx(attention, rel=1e-3)
    assert figures["value-relation"] == pytest.approx(value, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"compare": "attention"}, {"relation_heads": 16, "teacher_layer": 1}])
def test_it_trains_and_leaves_the_teacher_as_it_was_and_nothing_in_the_student(options: dict[str, Any]) -> None:
    teacher, student = bert(0, 3, 64, 4).train(), bert(1)
    before, names = fingerprint(teacher), list(student.state_dict())
    seen = curve(MiniLM(epochs=30, learning_rate=5e-3, **options), student, context(teacher))
    assert seen[-1]["loss"] < 0.5 * seen[0]["loss"]
    assert fingerprint(teacher) == before
    assert list(student.state_dict()) == names


@pytest.mark.slow
def test_an_encoder_without_a_head_learns_too() -> None:
    teacher, student = bert(0, 6, name="BertModel"), bert(1, 3, name="BertModel")
    seen = curve(MiniLM(epochs=20, learning_rate=5e-3), student, context(teacher, Embedding()))
    assert seen[-1]["loss"] < 0.5 * seen[0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("compare", ["relations", "attention"])
@pytest.mark.parametrize("model", ["tiny_bert", "tiny_llama", "tiny_gpt2"])
def test_a_net_that_learns_from_itself_begins_at_zero(model: str, compare: str) -> None:
    student = zoo.MODELS[model]()
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    task = Classification() if model == "tiny_bert" else CausalLM()
    figures = curve(MiniLM(steps=1, compare=compare), student, context(zoo.MODELS[model](), task, batch=zoo.batch(model)))[0]
    assert figures["loss"] < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("compare", ["relations", "attention"])
@pytest.mark.parametrize(("padding", "size", "accumulate"), [(5, 8, 1), (0, 2, 4), (3, 4, 2)])
def test_padding_and_the_cut_of_a_step_change_nothing(compare: str, padding: int, size: int, accumulate: int) -> None:
    teacher, results = bert(0, 3), []
    for pad, cut, times in ((0, 8, 1), (padding, size, accumulate)):
        student = bert(1)
        fit(student, [MiniLM(steps=3, optimizer="sgd", learning_rate=0.1, accumulate=times, compare=compare)], context(teacher, size=cut, batch=sentences(pad)))
        results.append(weights(student))
    assert torch.allclose(*results, atol=1e-5)
    assert not torch.allclose(results[0], weights(bert(1)), atol=1e-3)


@pytest.mark.slow
def test_a_bias_by_position_hinders_the_first_version_only() -> None:
    teacher, student = made("MPNet"), made("MPNet")
    with pytest.raises(KdError, match="a position bias"):
        fit(student, [MiniLM(compare="attention")], context(teacher, Embedding()))
    assert "query-relation" in curve(MiniLM(steps=1), student, context(teacher, Embedding()))[0]


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"compare": "attention"}, "the student has 4 heads, the teacher 6", "--compare relations"),
        ({"relation_heads": 5}, "--relation-heads 5 does not divide the widths 32, 48", "--relation-heads 4"),
        ({"teacher_layer": 3}, "the teacher has 3 blocks", "from 0 to 2"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(options: dict[str, Any], message: str, hint: str) -> None:
    student = bert(1)
    before = weights(student)
    with pytest.raises(KdError, match=message) as caught:
        fit(student, [MiniLM(**options)], context(bert(0, 3, 48, 6)))
    assert hint in str(caught.value)
    assert torch.equal(weights(student), before)


def test_nets_without_attention_are_refused() -> None:
    with pytest.raises(KdError, match="no blocks with a known form of attention"):
        fit(zoo.mlp(), [MiniLM()], Context(Classification(), objects={"train": adopt_data(zoo.batch("mlp"), 8), "teacher": zoo.mlp()}, original=None))
