"""distill relations: distances and angles against their formulas. What it shares with its kin is in test_distill_between_items."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from kdkit_distill.relation.relations import Relations, angle_relations, distance_relations
from tests.fixtures import zoo
from tests.fixtures.relations import context, curve, features, shaken


def huber(difference: float) -> float:
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def relative(points: list[list[float]]) -> list[list[float]]:
    found = [[math.dist(one, two) for two in points] for one in points]
    above = [each for row in found for each in row if each > 0]
    return [[each / (sum(above) / len(above)) for each in row] for row in found]


def cosine(one: list[float], corner: list[float], two: list[float]) -> float:
    lengths = math.dist(one, corner) * math.dist(two, corner)
    return sum((a - c) * (b - c) for a, b, c in zip(one, two, corner, strict=True)) / lengths if lengths else 0.0


@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_the_mean_of_distances_is_the_formula_written_out(spread: float) -> None:
    student, teacher = features(6, 4), features(6, 3, seed=1)
    student[0] *= spread
    mine, theirs = relative(student.tolist()), relative(teacher.tolist())
    expected = sum(huber(mine[i][j] - theirs[i][j]) for i, j in product(range(6), repeat=2)) / 36
    assert distance_relations(student, teacher).mean().item() == pytest.approx(expected, rel=1e-9)


def test_the_mean_of_angles_is_the_formula_written_out() -> None:
    student, teacher = features(6, 4), features(6, 3, seed=1)
    mine, theirs = student.tolist(), teacher.tolist()
    expected = sum(huber(cosine(mine[i], mine[j], mine[k]) - cosine(theirs[i], theirs[j], theirs[k])) for i, j, k in product(range(6), repeat=3)) / 216
    assert angle_relations(student, teacher).mean().item() == pytest.approx(expected, rel=1e-9)


def test_an_items_angles_are_those_at_its_corner() -> None:
    student, teacher = features(4, 3), features(4, 3, seed=1)
    mine, theirs = student.tolist(), teacher.tolist()
    at_second = sum(huber(cosine(mine[i], mine[1], mine[k]) - cosine(theirs[i], theirs[1], theirs[k])) for i, k in product(range(4), repeat=2)) / 16
    assert angle_relations(student, teacher)[1].item() == pytest.approx(at_second, rel=1e-9)


def test_the_mean_distance_leaves_out_equal_points() -> None:
    twice = torch.tensor([[0.0], [0.0], [1.0]])
    apart = torch.tensor([[0.0], [0.0], [7.0]])
    assert distance_relations(twice, apart).abs().max() < 1e-6


@pytest.mark.parametrize("at_once", [1, 200, 10**6])
def test_a_few_corners_at_a_time_give_the_same_values_and_gradients(at_once: int) -> None:
    teacher = features(9, 3, seed=1)

    def found(bound: int) -> tuple[Tensor, Tensor]:
        student = features(9, 4).requires_grad_()
        values = angle_relations(student, teacher, bound)
        (values * torch.arange(1, 10)).sum().backward()
        return values.detach(), student.grad

    whole, parts = found(10**9), found(at_once)
    assert torch.allclose(whole[0], parts[0], atol=1e-14)
    assert torch.allclose(whole[1], parts[1], atol=1e-14)


def test_what_is_kept_for_the_backward_pass_is_bounded() -> None:
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        angle_relations(features(64, 4).requires_grad_(), features(64, 4, seed=1), at_once=10_000)
    assert kept < 64 * 64 * 64 / 4


def test_weights_are_the_papers_and_angles_can_be_left_out() -> None:
    teacher = shaken(zoo.mlp())
    figures = curve(Relations(labels=False, steps=1), zoo.mlp(), context("mlp", teacher=teacher))[0]
    assert figures["loss"] == pytest.approx(25 * figures["distance"] + 50 * figures["angle"], rel=1e-5)
    assert "angle" not in curve(Relations(steps=1, angle_weight=0), zoo.mlp(), context("mlp", teacher=teacher))[0]
