"""What holds for every feature technique: nothing is left behind, padding and cuts change nothing, half precision is safe."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.stages.validation import validate_stage
from kdkit.tasks import Classification, TokenClassification
from kdkit.training import Step, fit
from kdkit_distill.feature.attention import Attention
from kdkit_distill.feature.contrast import Contrast
from kdkit_distill.feature.hints import Hints
from kdkit_distill.feature.review import Review
from kdkit_distill.feature.stage import counted
from kdkit_distill.feature.variational import Variational
from kdkit_distill.layers.pooling import vectors
from kdkit_distill.technique import DistillStage
from tests.fixtures import zoo
from tests.fixtures.interruption import interrupted, interrupted_at_blocks, moments
from tests.fixtures.lessons import bert, context, fingerprint, numbers, of_zoo, sentences, taught, weights

ALL: list[type[DistillStage]] = [Hints, Attention, Variational, Contrast, Review]
TOKENS: list[type[DistillStage]] = [Hints, Attention, Variational]
VECTORS: list[type[DistillStage]] = [Hints, Variational, Contrast]
"""Techniques for layers that have no places to compare."""
TRAINED = [
    *((technique, *pair) for technique in ALL for pair in (("cnn", "cnn"), ("depthwise", "cnn"))),
    *((technique, "tiny_bert", "tiny_bert") for technique in (*TOKENS, Contrast)),
    *((technique, "mlp", "mlp") for technique in VECTORS),
]


def other(model: nn.Module) -> nn.Module:
    """The same net with other weights."""
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight += 0.1 * numbers(*weight.shape, seed=number).float()
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("technique", "student", "teacher"), TRAINED)
def test_it_trains_and_leaves_nothing_in_student_or_teacher(technique: type[DistillStage], student: str, teacher: str) -> None:
    learner, knower = other(zoo.MODELS[student]()), zoo.MODELS[teacher]().train()
    keys, hooks, before, began = list(learner.state_dict()), fingerprint(learner)[3], fingerprint(knower), weights(learner)
    reported = taught(technique(steps=4, alpha=1.0, labels=False), learner, context(of_zoo(student), knower))
    assert list(learner.state_dict()) == keys
    assert fingerprint(learner)[3] == hooks
    assert fingerprint(knower) == before
    assert not torch.equal(weights(learner), began)
    assert all(torch.isfinite(torch.tensor(list(figures.values()))).all() for figures in reported)


@pytest.mark.slow
@pytest.mark.parametrize("technique", ALL)
def test_its_terms_fall(technique: type[DistillStage]) -> None:
    teacher, student = zoo.cnn(), zoo.depthwise()
    reported = taught(technique(labels=False, steps=40, learning_rate=0.01), student, context(of_zoo("cnn"), teacher))
    assert reported[-1]["loss"] < reported[0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("technique", ALL)
def test_before_training_batch_norm_has_seen_nothing(technique: type[DistillStage]) -> None:
    student, run = zoo.cnn().train(), context(of_zoo("cnn"), zoo.cnn())
    before, generator = fingerprint(student), torch.random.get_rng_state()
    part = technique().part(student, run)
    part.open(student)
    state = torch.random.get_rng_state()
    part.close(student)
    assert fingerprint(student) == before
    if technique is Attention:  # without modules nothing is drawn
        assert torch.equal(generator, state)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_moment_leaves_the_teacher_without_hooks() -> None:
    teacher, student = zoo.mlp(), zoo.mlp()
    before, run = fingerprint(teacher), context(of_zoo("mlp"), teacher)

    def train() -> None:
        fit(student, [Hints(steps=2)], run)

    assert interrupted_at_blocks(train) == []
    assert fingerprint(teacher) == before
    for moment in moments(train):
        interrupted(train, moment)
        if fingerprint(teacher) != before:
            gc.collect()  # it hit between a block and its context manager, which ends when it is collected
        assert fingerprint(teacher) == before


@pytest.mark.slow
@pytest.mark.parametrize("technique", TOKENS)
@pytest.mark.parametrize(("padding", "cuts"), [(4, ()), (0, (3,)), (2, (1, 2, 6))])
def test_padding_and_cuts_change_nothing(technique: type[DistillStage], padding: int, cuts: tuple[int, ...]) -> None:
    plain, other = bert(0), bert(0)
    for model, data in ((plain, sentences()), (other, sentences(padding, cuts))):
        fit(model, [technique(epochs=3, learning_rate=0.001, accumulate=8, labels=False)], context(data, bert(1)))
    assert torch.allclose(weights(plain), weights(other), rtol=0, atol=1e-7)
    assert not torch.allclose(weights(plain), weights(bert(0)), atol=1e-4)


class Wider(nn.Module):
    """Inputs as float64."""

    def forward(self, x: Tensor) -> Tensor:
        return x.double()


@pytest.mark.slow
@pytest.mark.parametrize("technique", [Hints, Attention, Variational, Review])
def test_accumulated_maps_are_the_same_training(technique: type[DistillStage]) -> None:
    x = numbers(8, 3, 8, 8)

    def net(width: int) -> nn.Module:
        torch.manual_seed(width)
        blocks = [nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.ReLU()) for inputs, outputs in ((3, width), (width, 2 * width))]
        return nn.Sequential(Wider(), *blocks, nn.Flatten(), nn.Linear(8 * width, 3)).double()

    made = [net(4), net(4)]
    for model, options in zip(made, ({"batch_size": 8}, {"batch_size": 2, "accumulate": 4}), strict=True):
        fit(model, [technique(epochs=3, labels=False, optimizer="sgd", learning_rate=1e-3, **options)], context(x, net(6)))
    assert torch.allclose(weights(made[0]), weights(made[1]), rtol=0, atol=1e-7)


def test_what_depends_on_the_batch_is_not_accumulated() -> None:
    assert any("accumulate" in line for line in Contrast(accumulate=2).conflicts())
    assert not list(Hints(accumulate=2).conflicts())


@pytest.mark.parametrize("technique", ALL)
def test_half_precision_and_great_features_stay_finite(technique: type[DistillStage]) -> None:
    run = context(of_zoo("cnn"), zoo.cnn())
    for dtype, size in ((torch.float16, 6e4), (torch.bfloat16, 1e4)):
        features = [
            ((numbers(16, 4, 6, 6) * size / 5).clamp(-size, size).to(dtype), (numbers(16, 8, 3, 3, seed=1) * size / 5).clamp(-size, size).to(dtype)) for _ in range(2)
        ]
        features[1][0].zero_()
        stage = technique(layers=("a=c", "b=d"))
        modules = stage.modules(features, run)
        students = [student.clone().requires_grad_() for student, _ in features]
        from kdkit_distill.signals import Pair, Signal, SignalPair

        step = Step(Batch((torch.zeros(16, 3, 2, 2),), numbers=torch.arange(16)), None, nn.Identity(), Classification(), 0, 0.0)
        mine, theirs = Signal(None, dict(zip("ab", students, strict=True))), Signal(None, {"c": features[0][1], "d": features[1][1]})
        terms = list(stage.terms(SignalPair(mine, theirs, step, (Pair("a", "c"), Pair("b", "d")), modules)))
        sum(term.values.sum() * 1e-9 for term in terms).backward()
        assert len(terms) == 2
        assert all(term.values.dtype == torch.float32 and torch.isfinite(term.values).all() and len(term.values) == 16 for term in terms)
        assert all(torch.isfinite(student.grad).all() for student in students)


def test_values_of_tokens_count_as_the_task_counts() -> None:
    batch = Batch(kwargs={"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])})
    values = torch.tensor([[1.0, 3.0, torch.inf], [5.0, torch.inf, torch.inf]])

    def step(task: Any) -> Step:
        return Step(batch, None, nn.Identity(), task, 0, 0.0)

    assert counted(values, step(Classification())).tolist() == [2.0, 5.0]
    assert counted(values, step(TokenClassification())) is values
    assert counted(values[:, :2], step(TokenClassification())).shape == (2,)


def test_an_items_vector_is_the_mean_over_what_is_real() -> None:
    batch = Batch(kwargs={"attention_mask": torch.tensor([[1, 1, 0], [0, 0, 1]])})
    tokens = torch.arange(12.0).view(2, 3, 2)
    assert vectors(tokens, batch).tolist() == [[1.0, 2.0], [10.0, 11.0]]
    assert torch.equal(vectors(tokens.view(2, 3, 2, 1), batch), tokens.mean(2))
    assert torch.equal(vectors(tokens, Batch((tokens,))), tokens.mean(1))


def test_a_layer_that_runs_several_times_is_named() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.again, self.head = nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.again(self.again(x).relu()))

    run = context(of_zoo("mlp"), zoo.mlp())
    fit(Shared(), [Hints(layers=("again=second",), steps=1)], run)
    assert any("again of Shared runs 2 times" in note for note in run.notes)


def test_what_is_compared_is_reported() -> None:
    run = context(of_zoo("mlp"), zoo.mlp())
    fit(zoo.mlp(), [Hints(steps=1)], run)
    assert "distill hints compares first=first, second=second" in run.notes


def test_names_near_a_wrong_one_are_offered() -> None:
    with pytest.raises(KdError, match="Cnn has no layer 'block.1'") as caught:
        fit(zoo.cnn(), [Hints(layers=("block.1",), steps=1)], context(of_zoo("cnn"), zoo.cnn()))
    assert "blocks.1" in str(caught.value)


def test_they_join_others_in_one_loss() -> None:
    student, run = zoo.cnn(), context(of_zoo("cnn"), zoo.cnn())
    reported = taught(Hints(steps=2, also=("attention", "soft")), student, run)
    assert {"hint blocks.0", "attention blocks.1", "soft", "label"} <= set(reported[0])


def test_the_rules_of_every_stage_hold() -> None:
    assert [list(validate_stage(each)) for each in ALL] == [[]] * len(ALL)


@pytest.mark.slow
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Any) -> None:
    teacher = zoo.cnn()
    for technique in ALL:
        whole, part = zoo.depthwise(), zoo.depthwise()
        options = {"epochs": 3, "learning_rate": 0.01}
        fit(whole, [technique(**options)], context(of_zoo("cnn"), teacher))
        place = str(tmp_path / technique.__name__)
        run = context(of_zoo("cnn"), teacher)
        run.observe = lambda progress, run=run: run.cancelled.set() if progress.done == 5 else None
        with pytest.raises(KdError, match="cancelled"):
            fit(copy.deepcopy(part), [technique(checkpoint=place, **options)], run)
        fit(part, [technique(checkpoint=place, resume=True, **options)], context(of_zoo("cnn"), teacher))
        assert torch.equal(weights(whole), weights(part)), technique
