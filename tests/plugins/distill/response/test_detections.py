"""The distance between detections: place by place, and of sets."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdkit.errors import KdError
from kdkit.tasks import Detection
from kdkit_distill.layers.heads import same_classes
from kdkit_distill.response.detections import distance_of_places, distance_of_sets
from kdkit_distill.signals import Signal
from tests.fixtures.outputs import seeded

pytest.importorskip("scipy")
TASK = Detection(form="cxcywh", sets=True)


def detections(items: int, places: int, seed: int, classes: int = 2) -> Tensor:
    generator = seeded(seed)
    logits = 2 * torch.randn(items, places, classes + 1, generator=generator, dtype=torch.float64)
    return torch.cat([logits, torch.rand(items, places, 4, generator=generator, dtype=torch.float64) + 0.05], -1)


def place_distance(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """The distance of one place of the student to one of the teacher, in plain numbers."""
    wanted, found = (teacher[:-4] / temperature).softmax(0), (student[:-4] / temperature).softmax(0)
    classes = sum(float(p) * (float(p.log()) - float(q.log())) for p, q in zip(wanted, found, strict=True))
    one, two = student[-4:].tolist(), teacher[-4:].tolist()
    left, right = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (one, two)]
    common = max(0, min(left[2], right[2]) - max(left[0], right[0])) * max(0, min(left[3], right[3]) - max(left[1], right[1]))
    union = one[2] * one[3] + two[2] * two[3] - common
    hull = (max(left[2], right[2]) - min(left[0], right[0])) * (max(left[3], right[3]) - min(left[1], right[1]))
    boxes = 5 * sum(abs(a - b) for a, b in zip(one, two, strict=True)) + 2 * (1 - common / union + (hull - union) / hull)
    return temperature**2 * classes + (1 - float(teacher[:-4].softmax(0)[-1])) * boxes


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_distance_of_sets_is_the_least_over_all_permutations(temperature: float) -> None:
    student, teacher = detections(2, 4, 0), detections(2, 4, 1)
    expected = [
        min(sum(place_distance(one[place], two[other], temperature) for place, other in enumerate(order)) / 4 for order in permutations(range(4)))
        for one, two in zip(student, teacher, strict=True)
    ]
    assert distance_of_sets(student, teacher, temperature, TASK).tolist() == pytest.approx(expected, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(5)), st.permutations(range(5)), st.integers(0, 100))
def test_the_order_of_places_changes_nothing_and_pairs_in_order_are_not_closer(order: list[int], other: list[int], seed: int) -> None:
    student, teacher = detections(1, 5, seed), detections(1, 5, seed + 1)
    found = distance_of_sets(student, teacher, 1.0, TASK)
    assert float(distance_of_sets(student[:, order], teacher[:, other], 1.0, TASK)) == pytest.approx(float(found))
    assert float(found) <= sum(place_distance(one, two, 1.0) for one, two in zip(student[0], teacher[0], strict=True)) / 5 + 1e-9
    assert float(distance_of_sets(student, student[:, order], 1.0, TASK)) == pytest.approx(0, abs=1e-6)


def test_a_teacher_with_more_places_teaches_its_surest_objects_and_one_with_fewer_background() -> None:
    student, teacher = detections(1, 3, 0), detections(1, 5, 1)
    sure = (1 - teacher[0, :, :-4].softmax(-1)[:, -1]).topk(3).indices
    assert float(distance_of_sets(student, teacher, 1.0, TASK)) == pytest.approx(float(distance_of_sets(student, teacher[:, sure], 1.0, TASK)))
    background = -student[0, :, :-4].log_softmax(-1)[:, -1]
    few = [
        sum(place_distance(student[0, place], teacher[0, number], 1.0) for number, place in enumerate(order[:2])) + float(background[order[2]])
        for order in permutations(range(3))
    ]
    assert float(distance_of_sets(student, teacher[:, :2], 1.0, TASK)) == pytest.approx(min(few) / 3, rel=1e-6)


def test_sets_may_differ_in_size_and_places_may_not() -> None:
    one, two = Signal(detections(1, 3, 0)), Signal(detections(1, 5, 1))
    assert same_classes(one, two, TASK) == (one, two)
    with pytest.raises(KdError, match="both outputs need one shape"):
        same_classes(one, two, Detection(form="cxcywh", sets=False))


def test_the_gradient_of_sets_is_that_of_the_assigned_places() -> None:
    student = detections(1, 4, 0).requires_grad_()
    distance_of_sets(student, student.detach()[:, [2, 0, 3, 1]], 1.0, TASK).sum().backward()
    # the KL of equal distributions has no slope; the boxes' L1 has none at its corner
    assert student.grad is not None
    assert float(student.grad[..., :-4].abs().max()) < 1e-9


def test_the_distance_of_places_weighs_boxes_by_the_probability_of_an_object() -> None:
    student, teacher = detections(2, 3, 0), detections(2, 3, 1)
    wanted, found = teacher[..., :-4].softmax(-1), student[..., :-4].log_softmax(-1)
    apart = (student[..., -4:] - teacher[..., -4:]).abs().sum(-1)
    expected = ((wanted * (wanted.log() - found)).sum(-1) + (1 - wanted[..., -1]) * apart).mean(-1)
    assert torch.allclose(distance_of_places(student, teacher, 1.0, TASK), expected)
