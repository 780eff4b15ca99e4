"""distill layers (TinyBERT): hidden states, attention scores and prediction against their formulas, on transformers as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import CausalLM, Classification, Embedding, Regression
from kdkit.training import fit
from kdkit_distill.layers.matching import Capture
from kdkit_distill.transformer.layers import Layers, attention_scores, hidden_states, prediction, uniform_map
from kdkit_distill.transformer.masks import compared_tokens, seen_pairs
from kdkit_distill.transformer.stack import stack_of
from tests.fixtures import zoo
from tests.fixtures.lessons import fingerprint, weights
from tests.fixtures.sentences import REAL, attended, bert, context, curve, made, random, sentences

GROUPED = {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: made("Bert"),
    "roberta": lambda: made("Roberta", pad_token_id=0),
    "electra": lambda: made("Electra", embedding_size=16),
    "distilbert": lambda: made("DistilBert", sizes={"vocab_size": 96, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 32, "max_position_embeddings": 32}),
    "gpt2": lambda: made("GPT2", sizes={"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "bos_token_id": 1, "eos_token_id": 2}),
    "llama": lambda: made("Llama", **GROUPED),
    "qwen3": lambda: made("Qwen3", head_dim=8, **GROUPED),
    "mistral": lambda: made("Mistral", **GROUPED),
}
"""Ways of writing attention: three linears, fused, grouped keys, rotary positions, norms of queries and keys."""


# What is read off a model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_scores_and_states_read_off_under_sdpa_are_those_of_transformers(name: str) -> None:
    model, batch = MODELS[name](), sentences()
    stack, expected = stack_of(model), attended(model, batch)
    layers = [stack.embeddings, stack.final, *(block.name for block in stack.blocks)]
    layers += [layer for block in stack.blocks for layer in (block.attention.query, block.attention.key)]
    with torch.no_grad(), Capture(model, layers) as capture:
        batch.call(model)
        features = capture.take()
    real = batch.kwargs["attention_mask"].bool()
    assert torch.allclose(features[stack.embeddings], expected.hidden_states[0], atol=1e-5)
    assert torch.allclose(features[stack.blocks[0].name][real], expected.hidden_states[1][real], atol=1e-4)
    assert torch.allclose(features[stack.final][real], expected.hidden_states[-1][real], atol=1e-4)
    for block, after in zip(stack.blocks, expected.attentions, strict=True):
        assert (block.attention.heads, block.attention.size) == (4, 8)
        scores = block.attention.scores(features, batch)
        shares = scores.masked_fill(~seen_pairs(real, block.attention.causal)[:, None], -1e30).softmax(-1)
        rows = real[:, None, :, None].expand_as(shares)
        assert torch.allclose(shares[rows], after[rows], atol=1e-5)


def test_scores_are_not_rounded_by_autocast() -> None:
    model, batch = MODELS["bert"](), sentences()
    attention = stack_of(model).blocks[0].attention
    with torch.no_grad(), Capture(model, [attention.query, attention.key]) as capture:
        batch.call(model)
        features = capture.take()
    with torch.autocast("cpu", torch.bfloat16):
        found = attention.scores(features, batch)
    assert torch.equal(found, attention.scores(features, batch))


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("Albert", {"embedding_size": 16}, "runs one block 2 times"),
        ("Gemma2", GROUPED | {"head_dim": 8}, "caps its attention scores"),
        ("GPTNeoX", {"bos_token_id": 1, "eos_token_id": 2}, "no blocks with a known form of attention"),
    ],
)
def test_models_that_can_not_be_read_are_refused_plainly(name: str, sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(KdError, match=message):
        stack_of(made(name, **sizes))


def test_an_encoder_with_a_decoder_is_refused() -> None:
    sizes = {"vocab_size": 96, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    with pytest.raises(KdError, match="several stacks of attention"):
        stack_of(made("Bart", sizes=sizes | {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16}))


def test_nets_without_attention_are_refused_with_what_else_there_is() -> None:
    with pytest.raises(KdError, match="no blocks with a known form of attention") as caught:
        fit(zoo.mlp(), [Layers()], Context(Classification(), objects={"train": adopt_data(zoo.batch("mlp"), 8), "teacher": zoo.mlp()}, original=None))
    assert "distill hints" in str(caught.value)


def test_a_bias_by_position_is_refused_and_scores_can_be_left_out() -> None:
    teacher = made("MPNet")
    with pytest.raises(KdError, match="a position bias"):
        fit(made("MPNet"), [Layers()], context(teacher, Embedding()))
    assert "scores" not in curve(Layers(steps=1, attention_weight=0), made("MPNet"), context(teacher, Embedding()))[0]


# The objectives ------------------------------------------------------------------------------------------------------


def test_hidden_states_are_the_formula_written_out() -> None:
    student, teacher = random(2, 3, 4), random(2, 3, 4, seed=1)
    for item, tokens in ((0, 3), (1, 2)):
        squares = [float(student[item, token, unit] - teacher[item, token, unit]) ** 2 for token, unit in product(range(tokens), range(4))]
        assert hidden_states(student, teacher, REAL)[item].item() == pytest.approx(sum(squares) / len(squares), rel=1e-9)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_scores_are_the_formula_written_out(causal: bool) -> None:
    student, teacher = random(2, 4, 3, 3), random(2, 4, 3, 3, seed=1)
    for item, tokens in ((0, 3), (1, 2)):
        pairs = [(one, two) for one, two in product(range(tokens), repeat=2) if two <= one or not causal]
        squares = [float(student[item, head, one, two] - teacher[item, head, one, two]) ** 2 for head in range(4) for one, two in pairs]
        assert attention_scores(student, teacher, seen_pairs(REAL, causal))[item].item() == pytest.approx(sum(squares) / len(squares), rel=1e-9)


def test_of_different_head_counts_the_means_over_heads_are_compared() -> None:
    student, teacher = random(2, 4, 3, 3), random(2, 6, 3, 3, seed=1)
    expected = attention_scores(student.mean(1, keepdim=True), teacher.mean(1, keepdim=True), seen_pairs(REAL))
    assert torch.allclose(attention_scores(student, teacher, seen_pairs(REAL)), expected)


@pytest.mark.parametrize("objective", [lambda one, two: hidden_states(one[:, 0], two[:, 0], REAL), lambda one, two: attention_scores(one, two, seen_pairs(REAL))])
def test_identical_signals_give_zero_and_gradients_are_those_of_finite_differences(objective: Callable) -> None:
    student, teacher = random(2, 2, 3, 3).requires_grad_(), random(2, 2, 3, 3, seed=1)
    assert torch.autograd.gradcheck(lambda one: objective(one, teacher), student)
    found = objective(student, student.detach())
    found.sum().backward()
    assert found.abs().max() == 0
    assert student.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_infinite_padding_stay_finite(dtype: torch.dtype) -> None:
    student, teacher = (random(2, 2, 3, 3).clamp(-1, 1) * 6e4).to(dtype), (random(2, 2, 3, 3, seed=1).clamp(-1, 1) * 6e4).to(dtype)
    student[1, :, 2] = torch.inf
    student.requires_grad_()
    found = attention_scores(student, teacher, seen_pairs(REAL))
    found.sum().backward()
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    assert torch.isfinite(student.grad[0]).all()


def test_the_prediction_of_classes_is_the_soft_cross_entropy_less_the_teachers_entropy() -> None:
    student, teacher = random(5, 3), random(5, 3, seed=1)
    entropy = -(teacher.softmax(-1) * teacher.log_softmax(-1)).sum(-1)
    expected = nn.functional.cross_entropy(student, teacher.softmax(-1), reduction="none") - entropy
    assert torch.allclose(prediction(student, teacher, Classification()), expected)


def test_the_prediction_of_vectors_and_numbers_is_the_mean_squared_difference() -> None:
    student, teacher = random(5, 3), random(5, 3, seed=1)
    for task in (Embedding(), Regression()):
        assert torch.allclose(prediction(student, teacher, task), (student - teacher).pow(2).mean(1))
    assert prediction(student, random(5, 4), Embedding()) is None


def test_heads_over_one_vocabulary_are_cut_and_other_classes_refused() -> None:
    student, teacher = random(2, 3, 5), random(2, 3, 7, seed=1)
    assert torch.equal(prediction(student, teacher, CausalLM()), prediction(student, teacher[..., :5], CausalLM()))
    with pytest.raises(KdError, match="the teacher has 7 classes, the student 5"):
        prediction(student, teacher, Classification())


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [(3, 3, [0, 1, 2]), (4, 12, [2, 5, 8, 11]), (3, 6, [1, 3, 5]), (4, 6, [0, 2, 3, 5]), (4, 2, [0, 0, 0, 1]), (1, 12, [11])],
)
def test_the_uniform_map_is_the_papers(student: int, teacher: int, expected: list[int]) -> None:
    assert uniform_map(student, teacher) == list(enumerate(expected))


# The stage -----------------------------------------------------------------------------------------------------------


def test_its_terms_are_the_formulas_over_what_transformers_gives() -> None:
    student, teacher, batch = bert(1, 2), bert(0, 4), sentences()
    mine, theirs = attended(student, batch), attended(teacher, batch)
    real = batch.kwargs["attention_mask"].bool()
    start = copy.deepcopy(student)
    figures = curve(Layers(steps=1), student, context(teacher))[0]

    def states(one: Tensor, two: Tensor) -> float:
        return sum(float((one[item][keep] - two[item][keep]).pow(2).mean()) for item, keep in enumerate(real)) / 8

    assert figures["embeddings"] == pytest.approx(states(mine.hidden_states[0], theirs.hidden_states[0]), rel=1e-4)
    hidden = states(mine.hidden_states[1], theirs.hidden_states[2]) + states(mine.hidden_states[2], theirs.hidden_states[4])
    assert figures["hidden"] == pytest.approx(hidden, rel=1e-4)

    @torch.no_grad()
    def scores(model: nn.Module, states: Tensor, block: int) -> Tensor:
        self = model.bert.encoder.layer[block].attention.self
        query, key = (linear(states).unflatten(-1, (4, 8)).transpose(1, 2) for linear in (self.query, self.key))
        return query @ key.mT / 8**0.5

    attention = 0.0
    for one, two in ((0, 1), (1, 3)):
        squares = (scores(start, mine.hidden_states[one], one) - scores(teacher, theirs.hidden_states[two], two)).pow(2)
        attention += sum(float(squares[item][:, keep][:, :, keep].mean()) for item, keep in enumerate(real)) / 8
    assert figures["scores"] == pytest.approx(attention, rel=1e-4)
    soft = nn.functional.kl_div(mine.logits.log_softmax(-1), theirs.logits.log_softmax(-1), reduction="batchmean", log_target=True)
    assert figures["prediction"] == pytest.approx(float(soft), rel=1e-4)
    assert figures["loss"] == pytest.approx(sum(figures[name] for name in ("embeddings", "hidden", "scores", "prediction")), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("teacher", [{"blocks": 4}, {"blocks": 3, "width": 48, "heads": 6}])
def test_it_trains_and_leaves_the_teacher_as_it_was_and_no_projection_in_the_student(teacher: dict[str, int]) -> None:
    taught, student = bert(0, **teacher).train(), bert(1)
    before, names = fingerprint(taught), list(student.state_dict())
    run = context(taught)
    seen = curve(Layers(epochs=30, learning_rate=5e-3), student, run)
    assert all(seen[-1][name] < 0.9 * seen[0][name] for name in ("embeddings", "hidden", "scores", "prediction"))
    assert fingerprint(taught) == before
    assert list(student.state_dict()) == names
    assert any("means over heads" in note for note in run.notes) == ("heads" in teacher)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny_bert", "tiny_llama", "tiny_gpt2"])
def test_a_net_that_learns_from_itself_begins_at_zero(model: str) -> None:
    student = zoo.MODELS[model]()
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    task = Classification() if model == "tiny_bert" else CausalLM()
    figures = curve(Layers(steps=1), student, context(zoo.MODELS[model](), task, batch=zoo.batch(model)))[0]
    assert figures["loss"] < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("width", [32, 48])
def test_an_encoder_without_a_head_learns_its_vectors(width: int) -> None:
    teacher, student = bert(0, 3, width, name="BertModel"), bert(1, 2, name="BertModel")
    seen = curve(Layers(epochs=20, learning_rate=5e-3), student, context(teacher, Embedding()))
    assert seen[-1]["loss"] < 0.9 * seen[0]["loss"]
    assert ("prediction" in seen[0]) == (width == 32)


@pytest.mark.slow
@pytest.mark.parametrize(("padding", "size", "accumulate"), [(5, 8, 1), (0, 2, 4), (3, 4, 2)])
def test_padding_and_the_cut_of_a_step_change_nothing(padding: int, size: int, accumulate: int) -> None:
    teacher, results = bert(0, 3, 48, 6), []
    for pad, cut, times in ((0, 8, 1), (padding, size, accumulate)):
        student = bert(1)
        stage = Layers(steps=3, optimizer="sgd", learning_rate=1e-2, accumulate=times, labels=True)
        fit(student, [stage], context(teacher, size=cut, batch=sentences(pad, labels=True)))
        results.append(weights(student))
    assert torch.allclose(*results, atol=1e-5)
    assert not torch.allclose(results[0], weights(bert(1)), atol=1e-3)


@pytest.mark.slow
def test_layers_come_first_and_the_prediction_after_them() -> None:
    student, teacher = bert(1), bert(0)
    head = student.classifier.weight.clone()
    seen = curve(Layers(steps=4, intermediate_share=0.5), student, context(teacher))
    first, last = seen[0], seen[-1]
    assert first["loss"] == pytest.approx(first["embeddings"] + first["hidden"] + first["scores"], rel=1e-4)
    assert last["loss"] == pytest.approx(last["prediction"], rel=1e-4)
    assert not torch.equal(student.classifier.weight, head)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "moves"), [(0.0, True), (1.0, False)])
def test_the_prediction_alone_or_the_layers_alone(share: float, moves: bool) -> None:
    student = bert(1)
    head = student.classifier.weight.clone()
    fit(student, [Layers(steps=2, intermediate_share=share)], context(bert(0)))
    assert torch.equal(student.classifier.weight, head) != moves


@pytest.mark.slow
def test_blocks_can_be_paired_by_number() -> None:
    teacher = bert(0, 4)
    found = [curve(Layers(steps=1, map=pairs), bert(1), context(teacher))[0]["hidden"] for pairs in ((), ("0=1", "1=3"), ("0=0", "1=3"), ("1=3",))]
    assert found[0] == found[1]
    assert len(set(found)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["2=3", "0=4", "a=b", "1", "-1=0"])
def test_a_pair_of_blocks_that_are_not_there_is_refused(pair: str) -> None:
    with pytest.raises(KdError, match="names no pair of blocks") as caught:
        fit(bert(1), [Layers(map=(pair,))], context(bert(0, 4)))
    assert "from 0 to 1 and from 0 to 3" in str(caught.value)


def test_terms_have_weights_of_their_own() -> None:
    stage = Layers(steps=1, embedding_weight=2, hidden_weight=0, attention_weight=3, prediction_weight=0.5)
    figures = curve(stage, bert(1), context(bert(0)))[0]
    assert "hidden" not in figures
    assert figures["loss"] == pytest.approx(2 * figures["embeddings"] + 3 * figures["scores"] + 0.5 * figures["prediction"], rel=1e-4)


@pytest.mark.slow
def test_labels_count_only_where_asked_for() -> None:
    assert not Layers().required_inputs().labels
    assert Layers(labels=True).required_inputs().labels
    assert "label" in curve(Layers(labels=True, steps=1), bert(1), context(bert(0), batch=sentences(labels=True)))[0]


def test_other_tokens_are_refused() -> None:
    with pytest.raises(KdError, match="for \\(8, 9\\) of the batch"):
        compared_tokens(sentences(), torch.zeros(8, 12, 4))
