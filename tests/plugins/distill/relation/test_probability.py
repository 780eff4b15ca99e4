"""distill probability: the objective against its formula. What it shares with its kin is in test_distill_between_items."""

from __future__ import annotations

import math

import pytest
import torch

from kdkit_distill.relation.probability import Probability, neighbour_probabilities
from tests.fixtures.relations import features


def shares(points: list[list[float]]) -> list[list[float]]:
    """p_j|i over the others."""

    def kernel(one: list[float], two: list[float]) -> float:
        return (sum(a * b for a, b in zip(one, two, strict=True)) / (math.hypot(*one) * math.hypot(*two)) + 1) / 2

    found = [[kernel(one, two) if i != j else 0.0 for j, two in enumerate(points)] for i, one in enumerate(points)]
    return [[each / sum(row) for each in row] for row in found]


def test_it_is_the_formula_written_out_an_item_at_a_time() -> None:
    student, teacher = features(7, 5), features(7, 3, seed=1)
    q, p = shares(student.tolist()), shares(teacher.tolist())
    expected = [sum(b * math.log(b / a) for a, b in zip(one, two, strict=True) if b > 0) for one, two in zip(q, p, strict=True)]
    assert neighbour_probabilities(student, teacher).tolist() == pytest.approx(expected, rel=1e-6)


def test_it_is_never_negative() -> None:
    for seed in range(20):
        assert (neighbour_probabilities(features(7, 5, seed), features(7, 3, seed + 50)) >= -1e-12).all()


def test_opposite_vectors_cost_much_but_not_infinitely() -> None:
    student = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]).requires_grad_()
    found = neighbour_probabilities(student, torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2]]))
    found.sum().backward()
    assert 1 < found.max() < 10
    assert torch.isfinite(student.grad).all()


def test_of_two_items_each_has_one_neighbour_and_there_is_nothing_to_learn() -> None:
    assert torch.equal(neighbour_probabilities(features(2, 5), features(2, 3, seed=1)), torch.zeros(2, dtype=torch.float64))


def test_batches_of_two_are_refused_before_training() -> None:
    (problem,) = Probability(batch_size=2).conflicts()
    assert "at least 3" in problem
