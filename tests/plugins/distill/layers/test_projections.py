"""Projections: features of two shapes become features of one, and what can't be is said with both shapes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit_distill.layers.projections import Projection, bridge, matched, matched_shapes, sequence_of
from tests.fixtures.lessons import numbers


@pytest.mark.parametrize(
    ("student", "teacher", "sequence", "expected"),
    [
        ((2, 4, 8, 8), (2, 6, 8, 8), "text", (2, 6, 8, 8)),
        ((2, 4, 8, 8), (2, 6, 4, 4), "text", (2, 6, 4, 4)),
        ((2, 4, 4, 4), (2, 6, 8, 8), "text", (2, 6, 4, 4)),
        ((2, 4, 4, 8), (2, 6, 8, 4), "text", (2, 6, 4, 4)),
        ((2, 4, 4, 4), (2, 16, 6), "patches", (2, 6, 4, 4)),
        ((2, 4, 4, 4), (2, 17, 6), "patches", (2, 6, 4, 4)),
        ((2, 4, 2, 6), (2, 12, 6), "patches", (2, 6, 2, 6)),
        ((2, 4, 2, 6), (2, 13, 6), "patches", (2, 6, 2, 6)),
        ((2, 17, 4), (2, 6, 2, 2), "patches", (2, 6, 2, 2)),
        ((2, 9, 4), (2, 9, 6), "text", (2, 9, 6)),
        ((2, 9, 4), (2, 6, 6), "frames", (2, 6, 6)),
        ((2, 17, 4), (2, 5, 6), "patches", (2, 6, 2, 2)),
        ((2, 4), (2, 6), "text", (2, 6)),
        ((2, 4), (2, 6, 1, 1), "text", (2, 6)),
        ((2, 4, 1, 1), (2, 6), "text", (2, 6)),
    ],
)
def test_both_come_to_one_shape(student: tuple[int, ...], teacher: tuple[int, ...], sequence: str, expected: tuple[int, ...]) -> None:
    project = Projection(student, teacher, sequence)  # type: ignore[arg-type]
    one, two = project(torch.randn(student), torch.randn(teacher))
    assert one.shape == two.shape == expected
    assert [tuple(shape) for shape in matched_shapes(student, teacher, sequence)] == [
        tuple(each.shape) for each in matched(torch.zeros(student), torch.zeros(teacher), sequence)
    ]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("student", "teacher", "sequence", "reason"),
    [
        ((2, 9, 4), (2, 6, 4), "text", "the numbers of tokens differ"),
        ((2, 10, 4), (2, 6, 4), "patches", "the numbers of tokens differ"),
        ((2, 16, 50), (2, 32, 50), "frames", "two rates"),
        ((2, 4, 4, 4), (2, 14, 6), "patches", "neither 4x4 places nor a square"),
        ((2, 4), (2, 6, 4, 4), "text", "a single vector for each item"),
        ((2, 4), (2, 6, 4), "text", "a single vector for each item"),
        ((2, 4, 3, 3, 3), (2, 6, 3, 3, 3), "text", "neither maps, tokens nor vectors"),
    ],
)
def test_what_can_not_be_matched_is_reported_with_both_shapes(student: tuple[int, ...], teacher: tuple[int, ...], sequence: str, reason: str) -> None:
    with pytest.raises(KdError, match=reason) as caught:
        Projection(student, teacher, sequence)  # type: ignore[arg-type]
    assert str(student) in str(caught.value)
    assert str(teacher) in str(caught.value)
    assert "--layers" in str(caught.value)


def test_equal_widths_are_left_as_they_are() -> None:
    project = Projection((2, 4, 8, 8), (2, 4, 4, 4))
    student, teacher = numbers(2, 4, 8, 8), numbers(2, 4, 4, 4, seed=1)
    one, two = project(student, teacher)
    assert not list(project.parameters())
    assert torch.equal(one, F.avg_pool2d(student, 2))
    assert two is teacher


def test_a_map_goes_through_a_convolution_of_one_place() -> None:
    project = Projection.between(numbers(2, 4, 8, 8), numbers(2, 6, 8, 8))
    student = numbers(2, 4, 8, 8, seed=3)
    assert isinstance(project.map, nn.Conv2d)
    expected = torch.einsum("oi,bihw->bohw", project.map.weight[:, :, 0, 0], student) + project.map.bias[:, None, None]
    assert torch.allclose(project(student, numbers(2, 6, 8, 8))[0], expected)


def test_tokens_are_on_a_map_row_by_row_behind_the_class_token() -> None:
    tokens = numbers(2, 7, 5)
    one, two = matched(numbers(2, 5, 2, 3), tokens)
    assert torch.equal(two[1, :, 0, 2], tokens[1, 3])
    assert torch.equal(two[1, :, 1, 0], tokens[1, 4])
    assert torch.equal(matched(one, tokens[:, 1:])[1], two)


def test_other_numbers_of_items_and_tokens_are_as_good() -> None:
    project = Projection((2, 9, 4), (2, 9, 6))
    assert project(torch.randn(5, 3, 4), torch.randn(5, 3, 6))[0].shape == (5, 3, 6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_it_computes_in_single_precision_at_least(dtype: torch.dtype) -> None:
    student, teacher = numbers(2, 4, 4, 4).to(dtype), numbers(2, 6, 2, 2).to(torch.float16)
    project = Projection.between(student, teacher)
    one, two = project(student, teacher)
    assert one.dtype == two.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_bridge_takes_the_students_precision_and_computes_in_single_at_least(dtype: torch.dtype) -> None:
    student = numbers(2, 3, 4).to(dtype).requires_grad_()
    found = bridge(student, numbers(2, 3, 6))(student)
    assert found.shape == (2, 3, 6)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    found.sum().backward()
    assert student.grad is not None


def test_an_items_projection_is_its_own() -> None:
    project = Projection.between(numbers(8, 4, 4, 4), numbers(8, 6, 2, 2)).train()
    student, teacher = numbers(8, 4, 4, 4), numbers(8, 6, 2, 2)
    assert torch.allclose(project(student, teacher)[0][3:5], project(student[3:5], teacher[3:5])[0])


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (Batch(kwargs={"input_ids": torch.ones(2, 3, dtype=torch.long)}), "text"),
        (Batch(kwargs={"pixel_values": torch.ones(2, 3, 4, 4)}), "patches"),
        (Batch((torch.ones(2, 1000),)), "frames"),
        (Batch((torch.ones(2, 40, 100),)), "frames"),
    ],
)
def test_inputs_tell_what_tokens_are(batch: Batch, expected: str) -> None:
    assert sequence_of(batch) == expected
