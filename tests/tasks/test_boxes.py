"""Boxes: overlap and assignment."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdkit.tasks.boxes import assign, corners, iou
from tests.fixtures.outputs import seeded

pytest.importorskip("scipy")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000))
def test_no_assignment_costs_less(rows: int, columns: int, seed: int) -> None:
    costs = torch.rand(rows, columns, generator=seeded(seed), dtype=torch.float64)
    found = assign(costs)
    assert len(set(found[0].tolist())) == len(set(found[1].tolist())) == min(rows, columns)
    tall = costs if rows >= columns else costs.T
    least = min(sum(float(tall[row, column]) for column, row in enumerate(chosen)) for chosen in permutations(range(len(tall)), min(rows, columns)))
    assert float(costs[found].sum()) == pytest.approx(least)


def test_costs_that_are_not_finite_are_avoided() -> None:
    rows, columns = assign(torch.tensor([[torch.nan, 1.0], [1.0, torch.inf]]))
    assert columns[rows.argsort()].tolist() == [1, 0]


def test_the_overlap_of_a_box_with_itself_is_one_in_both_forms() -> None:
    boxes = torch.rand(4, 4, generator=seeded(0)) + 0.1
    assert iou(corners(boxes, "cxcywh"), corners(boxes, "cxcywh")).diagonal().tolist() == pytest.approx([1] * 4, abs=1e-5)
