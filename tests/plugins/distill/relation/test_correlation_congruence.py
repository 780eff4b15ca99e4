"""distill correlation-congruence: the objective against its formula. What it shares with its kin is in test_distill_between_items."""

from __future__ import annotations

import math

import pytest
import torch

from kdkit_distill.relation.correlation_congruence import CorrelationCongruence, correlation_congruence
from tests.fixtures import zoo
from tests.fixtures.relations import context, curve, features, shaken


def kernel(one: list[float], two: list[float], gamma: float, order: int) -> float:
    product = sum(a * b for a, b in zip(one, two, strict=True)) / (math.hypot(*one) * math.hypot(*two))
    return sum(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * product**p for p in range(order + 1))


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (1.5, 1), (0.4, 4)])
def test_its_mean_is_the_formula_written_out(gamma: float, order: int) -> None:
    student, teacher = features(7, 5), features(7, 3, seed=1)
    mine, theirs = student.tolist(), teacher.tolist()
    squares = [(kernel(mine[i], mine[j], gamma, order) - kernel(theirs[i], theirs[j], gamma, order)) ** 2 for i in range(7) for j in range(7)]
    assert correlation_congruence(student, teacher, gamma, order).mean().item() == pytest.approx(sum(squares) / 49, rel=1e-9)


def test_at_a_high_order_it_is_the_gaussian_kernel() -> None:
    student, teacher = (torch.nn.functional.normalize(each) for each in (features(7, 5), features(7, 3, seed=1)))
    mine, theirs = (torch.exp(-0.7 * torch.cdist(each, each).square()) for each in (student, teacher))
    assert torch.allclose(correlation_congruence(student, teacher, 0.7, 30), (mine - theirs).square().mean(1), atol=1e-9)


def test_its_options_reach_the_objective() -> None:
    teacher = shaken(zoo.mlp())
    found = [
        curve(CorrelationCongruence(labels=False, steps=1, **options), zoo.mlp(), context("mlp", teacher=teacher))[0]["correlation-congruence"]
        for options in ({}, {"gamma": 1.0}, {"order": 1})
    ]
    assert len(set(found)) == 3
