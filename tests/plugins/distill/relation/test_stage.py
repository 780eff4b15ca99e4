"""What all techniques over relations between items have in common: laws of their objectives, and how their stages train."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import Embedding
from kdkit.training import fit
from kdkit_distill.relation.correlation_congruence import CorrelationCongruence, correlation_congruence
from kdkit_distill.relation.geometry import distances, unit
from kdkit_distill.relation.probability import Probability, neighbour_probabilities
from kdkit_distill.relation.relations import Relations, angle_relations, distance_relations
from kdkit_distill.relation.similarity import Similarity, similarity
from kdkit_distill.relation.stage import RelationStage
from tests.fixtures import zoo
from tests.fixtures.lessons import fingerprint, weights
from tests.fixtures.relations import context, curve, features, shaken

OBJECTIVES = [similarity, distance_relations, angle_relations, neighbour_probabilities, correlation_congruence]
STAGES = [Similarity, Relations, Probability, CorrelationCongruence]
objectives = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda each: each.__name__)
stages = pytest.mark.parametrize("stage", STAGES, ids=lambda each: each.__name__)


# The objectives ------------------------------------------------------------------------------------------------------


@objectives
def test_there_is_one_value_an_item_and_widths_may_differ(objective: Callable) -> None:
    found = objective(features(6, 4), features(6, 9, seed=1))
    assert found.shape == (6,)
    assert (found > 0).all()


@objectives
def test_identical_features_give_zero_loss_and_zero_gradient(objective: Callable) -> None:
    student = features(6, 4).requires_grad_()
    found = objective(student, student.detach().clone())
    found.sum().backward()
    assert found.abs().max() < 1e-12
    assert student.grad.abs().max() < 1e-9


@pytest.mark.slow
@objectives
@given(st.integers(0, 100), st.floats(1e-3, 1e3))
@settings(max_examples=10, deadline=None)
def test_scale_and_rotation_of_the_students_features_change_nothing(objective: Callable, seed: int, scale: float) -> None:
    student, teacher = features(6, 4, seed), features(6, 5, seed + 1)
    turn = torch.linalg.qr(features(4, 4, seed + 2)).Q
    assert torch.allclose(objective(student @ turn * scale, teacher), objective(student, teacher), atol=1e-10)


@objectives
def test_the_order_of_the_batch_is_the_order_of_the_values(objective: Callable) -> None:
    student, teacher, order = features(6, 4), features(6, 5, seed=1), torch.tensor([3, 1, 5, 0, 2, 4])
    assert torch.allclose(objective(student[order], teacher[order]), objective(student, teacher)[order], atol=1e-12)


@objectives
def test_maps_are_flattened(objective: Callable) -> None:
    student, teacher = features(6, 24), features(6, 5, seed=1)
    assert torch.equal(objective(student.view(6, 2, 3, 4), teacher), objective(student, teacher))


@pytest.mark.slow
@objectives
def test_its_gradient_is_that_of_finite_differences(objective: Callable) -> None:
    teacher = features(5, 3, seed=1)
    assert torch.autograd.gradcheck(lambda student: objective(student, teacher), features(5, 4).requires_grad_())


@objectives
@pytest.mark.parametrize(("dtype", "scale"), [(torch.float16, 6e4), (torch.bfloat16, 1e4), (torch.float32, 1e15), (torch.float32, 1e-15)])
def test_extreme_features_and_half_precision_stay_finite(objective: Callable, dtype: torch.dtype, scale: float) -> None:
    student = (features(6, 4, dtype=torch.float32).clamp(-1, 1) * scale).to(dtype).requires_grad_()
    found = objective(student, (features(6, 5, 1, torch.float32).clamp(-1, 1) * scale).to(dtype))
    found.sum().backward()
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    assert torch.isfinite(student.grad).all()
    expected = objective(student.detach().double(), (features(6, 5, 1, torch.float32).clamp(-1, 1) * scale).to(dtype).double())
    assert torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-6)


@objectives
@pytest.mark.parametrize("student", ["equal", "zero", "two equal", "one zero"])
def test_equal_points_and_points_at_zero_give_no_nan_and_no_explosion(objective: Callable, student: str) -> None:
    rows = features(6, 4, dtype=torch.float32)
    mine = {"equal": rows[:1].repeat(6, 1), "zero": torch.zeros(6, 4), "two equal": rows[[0, 0, 1, 2, 3, 4]], "one zero": rows * (torch.arange(6) > 0)[:, None]}[student]
    mine = mine.clone().requires_grad_()
    found = objective(mine, features(6, 5, 1, torch.float32))
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert mine.grad.abs().max() < 1e3


@objectives
def test_autocast_does_not_make_it_coarse(objective: Callable) -> None:
    student, teacher = features(6, 4, dtype=torch.float32), features(6, 5, 1, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = objective(student, teacher)
    assert torch.equal(found, objective(student, teacher))


def test_unit_and_distances_are_what_torch_has() -> None:
    rows = features(6, 4)
    assert torch.allclose(unit(rows), nn.functional.normalize(rows), atol=1e-12)
    assert torch.allclose(distances(rows), (rows[:, None] - rows[None]).norm(dim=-1), atol=1e-12)


# The stages ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@stages
@pytest.mark.parametrize("model", ["mlp", "cnn", "tiny_bert"])
def test_it_trains_and_leaves_the_teacher_as_it_was_and_nothing_in_the_student(stage: type[RelationStage], model: str) -> None:
    teacher, student = shaken(zoo.MODELS[model]()).train(), zoo.MODELS[model]()
    before, names = fingerprint(teacher), list(student.state_dict())
    seen = curve(stage(labels=False, epochs=15, learning_rate=3e-3), student, context(model, teacher=teacher))
    assert seen[-1]["loss"] < 0.85 * seen[0]["loss"]
    assert fingerprint(teacher) == before
    assert list(student.state_dict()) == names


@pytest.mark.slow
@stages
def test_a_wider_teacher_is_compared_without_projection(stage: type[RelationStage]) -> None:
    torch.manual_seed(0)
    teacher = zoo.Mlp(hidden=64).eval()
    seen = curve(stage(epochs=1), zoo.mlp(), context("mlp", teacher=teacher))
    assert seen[-1]["loss"] > 0


@stages
def test_batches_are_not_accumulated(stage: type[RelationStage]) -> None:
    line = stage(accumulate=2)
    assert any("can't be accumulated" in problem for problem in line.conflicts())
    with pytest.raises(KdError, match="can't be accumulated"):
        fit(zoo.mlp(), [line], context("mlp"))


@pytest.mark.slow
@stages
def test_a_batch_of_one_is_refused(stage: type[RelationStage]) -> None:
    with pytest.raises(KdError, match="a batch of one item"):
        fit(zoo.mlp(), [stage()], context("mlp", items=1, size=1))
    with pytest.raises(KdError, match="a batch of one item"):
        fit(zoo.cnn(), [stage(batch_size=1)], context("cnn"))


@pytest.mark.slow
@stages
def test_padding_changes_nothing(stage: type[RelationStage]) -> None:
    ids = 3 + torch.randint(0, 90, (6, 9), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([9, 4, 6, 9, 2, 5])[:, None]
    results = []
    for padding in (0, 5):
        mask = (torch.arange(9 + padding)[None] < lengths).long()
        batch = Batch(kwargs={"input_ids": nn.functional.pad(ids, (0, padding)) * mask, "attention_mask": mask})
        student = zoo.tiny_bert()
        for module in student.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        run = context("tiny_bert", size=6, teacher=shaken(zoo.tiny_bert()), batch=batch)
        curve(stage(labels=False, steps=2, layers=("bert.encoder.layer.1",), optimizer="sgd", learning_rate=1e-3), student, run)
        results.append(weights(student))
    assert torch.allclose(*results, atol=1e-6)
    assert not torch.allclose(results[0], weights(zoo.tiny_bert()), atol=1e-6)


@pytest.mark.slow
@stages
def test_layers_can_be_named_and_several_are_summed(stage: type[RelationStage]) -> None:
    teacher = shaken(zoo.mlp())

    def first(*layers: str) -> dict[str, float]:
        student = zoo.mlp()
        student.dropout.p = 0.0
        return curve(stage(labels=False, steps=1, layers=layers), student, context("mlp", items=8, teacher=teacher))[0]

    one, two, both = first("first"), first("second"), first("first", "second")
    assert both["loss"] == pytest.approx(one["loss"] + two["loss"], rel=1e-4)
    assert one["loss"] != pytest.approx(two["loss"])


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(KdError, match="no layer 'secnd'"):
        fit(zoo.mlp(), [Similarity(layers=("secnd",))], context("mlp"))


def test_models_without_classes_learn_too() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = zoo.mlp()

        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"sentence_embedding": self.body(x)}

    run = Context(Embedding(), objects={"train": adopt_data(zoo.batch("mlp", 16).args[0], 8), "teacher": shaken(Encoder())}, original=None)
    seen = curve(Similarity(labels=False, epochs=5), Encoder(), run)
    assert seen[-1]["loss"] < seen[0]["loss"]


def test_two_relations_are_in_one_loss() -> None:
    run = context("mlp", teacher=shaken(zoo.mlp()))
    figures = curve(Similarity(also=("relations --weight 2",), steps=1, weight="published"), zoo.mlp(), run)[0]
    assert {"label", "similarity", "distance", "angle"} <= figures.keys()
    expected = 0.5 * figures["label"] + 0.5 * (3000 * figures["similarity"] + 2 * (25 * figures["distance"] + 50 * figures["angle"]))
    assert figures["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_student() -> None:
    students = [copy.deepcopy(zoo.mlp()) for _ in range(2)]
    for student in students:
        fit(student, [Relations(epochs=1)], context("mlp", teacher=shaken(zoo.mlp())))
    assert torch.equal(weights(students[0]), weights(students[1]))
