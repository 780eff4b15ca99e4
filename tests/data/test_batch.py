"""Batches: which inputs, labels and numbers of items a raw batch holds."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

from kdkit.data import Batch, as_batch
from kdkit.data.batch import resize
from kdkit.data.datasets import rebatched
from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data
from tests.fixtures.datasets import X, Y, pair

BATCHES = [
    (X, 1, (), False),
    ((X,), 1, (), False),
    ([X], 1, (), False),
    ((X, Y), 1, (), True),
    ([X, Y], 1, (), True),
    ((X, None), 1, (), False),
    (((X, X), Y), 2, (), True),
    (((X, X), None), 2, (), False),
    ((X, X, Y), 2, (), True),
    ({"a": X, "b": X}, 0, ("a", "b"), False),
    ({"a": X, "label": Y}, 0, ("a",), True),
    (({"a": X}, Y), 0, ("a",), True),
    (({"a": X, "b": X}, None), 0, ("a", "b"), False),
    ({"a": X, "text": ["one", "two"]}, 0, ("a",), False),
    (Batch((X,), labels=Y), 1, (), True),
    ((Batch((X,)), Y), 1, (), True),
]


@pytest.mark.parametrize(("raw", "positional", "named", "labelled"), BATCHES)
def test_each_form_of_a_batch_is_understood(raw: Any, positional: int, named: tuple, labelled: bool) -> None:
    batch = as_batch(raw)
    assert (len(batch.args), tuple(batch.kwargs), batch.labels is not None) == (positional, named, labelled)
    assert batch.size == 2


def test_a_batch_encoding_is_a_dict() -> None:
    transformers = pytest.importorskip("transformers")
    batch = as_batch(transformers.BatchEncoding({"input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1], [1, 0]], "labels": [0, 1]}))
    assert sorted(batch.kwargs) == ["attention_mask", "input_ids"]
    assert batch.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("float64", torch.float32),
        ("float32", torch.float32),
        ("float16", torch.float16),
        ("int32", torch.int32),
        ("uint8", torch.uint8),
        ("uint16", torch.int64),
        ("bool", torch.bool),
        (">f4", torch.float32),
    ],
)
def test_the_types_of_inputs_are_kept_but_for_float64(given_: str, expected: torch.dtype) -> None:
    assert as_batch(numpy.ones((2, 3), dtype=given_)).args[0].dtype == expected


@pytest.mark.parametrize(("given_", "expected"), [("float64", torch.float32), ("int32", torch.int64), ("uint8", torch.int64), ("bool", torch.int64)])
def test_labels_are_int64_or_float32(given_: str, expected: torch.dtype) -> None:
    assert as_batch((X, numpy.ones(2, dtype=given_))).labels.dtype == expected


def test_arrays_that_are_reversed_or_read_only_are_copied() -> None:
    backwards, frozen = numpy.arange(6.0).reshape(2, 3)[::-1], numpy.broadcast_to(numpy.arange(3.0), (2, 3))
    assert as_batch(backwards).args[0].tolist() == backwards.tolist()
    assert as_batch(frozen).args[0].tolist() == frozen.tolist()


def test_what_is_in_a_batch_goes_with_its_items() -> None:
    batch = Batch((torch.arange(4),), {"mask": torch.arange(4), "flag": True}, (torch.arange(4), torch.arange(4)))
    for some in (batch[1:3], batch[torch.tensor([1, 2])]):
        assert [some.args[0].tolist(), some.kwargs["mask"].tolist(), some.labels[1].tolist()] == [[1, 2]] * 3
        assert some.kwargs["flag"] is True


def test_batches_of_different_lengths_can_be_cut_but_not_joined() -> None:
    data = adopt_data([torch.zeros(4, 2), torch.zeros(4, 3)])
    assert [batch.size for batch in data.batches(batch_size=2)] == [2, 2, 2, 2]
    with pytest.raises(KdError, match="can't be joined"):
        list(data.batches(batch_size=3))


def test_numbers_go_with_their_items_when_a_batch_is_cut_or_moved() -> None:
    batch = adopt_data(pair(6)).example()
    assert batch[2:4].numbers.tolist() == [2, 3]
    assert batch[torch.tensor([5, 0])].numbers.tolist() == [5, 0]
    assert batch.to("cpu").numbers.tolist() == list(range(6))


OPERATIONS = {
    "to": lambda batch: batch.to("cpu"),
    "clone": lambda batch: batch.clone(),
    "slice": lambda batch: batch[1:3],
    "numbers": lambda batch: batch[torch.tensor([3, 0])],
    "mask": lambda batch: batch[torch.tensor([True, False, True, False])],
    "smaller": lambda batch: resize(batch, 2),
    "larger": lambda batch: resize(batch, 7),
    "joined": lambda batch: next(rebatched([batch[:1], batch[1:]], 4)),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_part_of_a_batch_follows_its_items(operation: str) -> None:
    items = torch.arange(4)
    batch = Batch((items,), {"mask": items + 10}, (items + 20, items + 30), items + 40, {"path": [str(item) for item in range(4)]})
    made = OPERATIONS[operation](batch)
    first = made.args[0]
    assert torch.equal(made.kwargs["mask"], first + 10)
    assert [torch.equal(part, first + offset) for part, offset in zip(made.labels, (20, 30), strict=True)] == [True, True]
    assert made.numbers.tolist() == (first + 40).tolist()
    assert made.fields == {"path": [str(item) for item in first.tolist()]}
