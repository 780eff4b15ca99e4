"""Evaluated data: which items of the evaluation data a version is measured on at first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kdkit.data import Batch, Data
from kdkit.measurement.predictions import fingerprint
from kdkit.measurement.report import EARLIER, EVAL, Report

LARGE = 20_000
"""Items from which a sample is measured at first, unless the setting `sample` says otherwise."""

FIRST = 5_000
"""Items of such a sample: an accuracy is then known to 1.4 points or better, with 95 % confidence."""


def on_earlier_data(report: Report) -> Report:
    """A report whose figures on the evaluation data are marked as those of data that were replaced."""
    return replace(report, figures=tuple(replace(figure, data=EARLIER) if figure.data == EVAL else figure for figure in report.figures))


def are_same(one: Data | None, other: Data | None) -> bool:
    """Whether two data sets give the same items with the same labels, as when one object is given again; data of unknown length are never the same.

    >>> import torch
    >>> data, again, others = (Data(lambda value=value: [torch.full((2, 3), value)], "made", 2) for value in (1.0, 1.0, 2.0))
    >>> are_same(data, again), are_same(data, others), are_same(None, data)
    (True, False, False)
    """
    if one is None or other is None or one is other:
        return one is other
    if one.items is None or one.items != other.items:
        return False
    return all(_are_equal(*pair) for pair in _aligned(one, other))


def _aligned(one: Data, other: Data) -> Iterator[tuple[Batch | None, Batch | None]]:
    """The same items of both, in batches of equal sizes; None where one has ended."""
    first, second = iter(one.batches()), iter(other.batches())
    left, right = next(first, None), next(second, None)
    while left is not None and right is not None:
        size = min(left.size, right.size)
        yield left[:size], right[:size]
        left = left[size:] if left.size > size else next(first, None)
        right = right[size:] if right.size > size else next(second, None)
    if left is not right:
        yield left, right


def _are_equal(one: Batch | None, other: Batch | None) -> bool:
    """Whether two batches are there and hold the same values; what has no digest is never the same."""
    if one is None or other is None:
        return False
    digest = _digest(one)
    return digest is not None and digest == _digest(other)


def _digest(batch: Batch) -> bytes | None:
    """A digest of a batch with its labels; None where it can't be read."""
    return fingerprint(Batch((batch.args, batch.labels), batch.kwargs))


@dataclass(frozen=True)
class EvaluatedData:
    """The data that versions are measured on.

    Attributes:
        data: all or a sample of the evaluation data; None if there are none.
        name: of the data.
        total: items of all the evaluation data if `data` is a sample; None otherwise.
    """

    data: Data | None
    name: str = EVAL
    total: int | None = None

    @classmethod
    def of(cls, data: Data | None, sample: int | None) -> EvaluatedData:
        """The data that the setting `sample` chooses.

        >>> EvaluatedData.of(Data(lambda: [], "many", 60_000), None).data
        Data(5000 of many)
        """
        if data is None or data.items is None or (sample is None and data.items <= LARGE):
            return cls(data)
        items = FIRST if sample is None else sample
        return cls(data) if items >= data.items else cls(data.sample(items), total=data.items)
