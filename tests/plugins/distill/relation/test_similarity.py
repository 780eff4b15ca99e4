"""distill similarity: the objective against its formula. What it shares with its kin is in test_distill_between_items."""

from __future__ import annotations

import math

import pytest
import torch

from kdkit_distill.relation.similarity import Similarity, similarity
from tests.fixtures.relations import features


def written_out(student: list[list[float]], teacher: list[list[float]]) -> float:
    """The formula as it stands in the paper, a number at a time."""

    def rows(points: list[list[float]]) -> list[list[float]]:
        gram = [[sum(a * b for a, b in zip(one, two, strict=True)) for two in points] for one in points]
        return [[each / math.sqrt(sum(value**2 for value in row)) for each in row] for row in gram]

    mine, theirs = rows(student), rows(teacher)
    return sum((a - b) ** 2 for one, two in zip(mine, theirs, strict=True) for a, b in zip(one, two, strict=True)) / len(student) ** 2


def test_its_mean_is_the_formula_written_out() -> None:
    student, teacher = features(7, 5), features(7, 3, seed=1)
    assert similarity(student, teacher).mean().item() == pytest.approx(written_out(student.tolist(), teacher.tolist()), rel=1e-9)


def test_rows_are_normalized_and_not_features() -> None:
    student, teacher = features(7, 5), features(7, 3, seed=1)
    longer = student * torch.linspace(1, 5, 7)[:, None]
    assert not torch.allclose(similarity(longer, teacher), similarity(student, teacher), rtol=0.05)


def test_an_items_value_depends_on_the_batch() -> None:
    student, teacher = features(8, 5), features(8, 3, seed=1)
    assert not torch.allclose(similarity(student, teacher)[:4], similarity(student[:4], teacher[:4]), rtol=0.05)


def test_its_weight_is_the_papers() -> None:
    assert Similarity(weight="published").constant == 3000
