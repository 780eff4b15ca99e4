"""A value of a module comes back as it was, or the skeleton's is compared with it: never another value without a word."""

from __future__ import annotations

import datetime
import decimal
import functools
import re
from collections import Counter, defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import nn

from kdkit import KdError
from kdkit.storage import folder
from kdkit.storage.json_values import MISSING, Decoder, Encoder
from kdkit.storage.trusted_classes import Classes


def through(value: Any) -> Any:
    code = Encoder(lambda tensor, place: None, {}).encode(value, ":x")
    decoder = Decoder(Classes(), lambda name, spec, place: torch.empty(0), {})
    found = decoder.decode(code, MISSING, ":x")
    assert decoder.problems == []
    return found


NUMBERS = (np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.bool_, np.complex64, np.complex128)


@given(
    some.complex_numbers()
    | some.binary(max_size=20)
    | some.builds(range, some.integers(-9, 9), some.integers(-9, 9), some.integers(1, 3))
    | some.builds(lambda kind, number: kind(number), some.sampled_from(NUMBERS), some.integers(0, 100))
    | some.text(some.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9).map(Path)
)
def test_simple_values_are_stored(value: Any) -> None:
    found = through(value)
    assert type(found) is type(value)
    assert repr(found) == repr(value)


class Odd(nn.Module):
    """A net with an attribute that is not plain data."""

    def __init__(self, value: Any):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.value = value


class Slots:
    __slots__ = ("number",)

    def __init__(self, number: int):
        self.number = number


class Text(str):
    pass


class Number(float):
    pass


def scaled(factor: float) -> Any:
    return lambda x: x * factor


PAIRS: dict[str, Any] = {
    "a closure": scaled,
    "a default": lambda number: eval(f"lambda x, y={number}: x"),
    "a partial": lambda number: functools.partial(torch.clamp, min=number),
    "slots": Slots,
    "a text of another class": lambda number: Text(number),
    "a number of another class": Number,
    "an array": lambda number: np.full((2, 3), number),
    "a decimal": decimal.Decimal,
    "a pattern": lambda number: re.compile(f"a{number}"),
    "a date": lambda number: datetime.timedelta(number),
    "a deque": lambda number: deque([number]),
    "a default dict": lambda number: defaultdict(list, {"a": [number]}),
    "a counter": lambda number: Counter({"a": number}),
    "a tensor in a closure": lambda number: scaled(torch.full((2,), float(number))),  # type: ignore[arg-type]
    "a memory format": lambda number: [torch.channels_last, torch.contiguous_format][number - 1],
}


@pytest.mark.parametrize("what", PAIRS)
def test_a_value_that_is_not_stored_is_compared_with_the_skeletons(what: str, tmp_path: Path) -> None:
    make = PAIRS[what]
    folder.save(tmp_path / "m", Odd(make(1)), None, {})
    loaded, _ = folder.load(tmp_path / "m", Odd(make(1)))
    assert type(loaded.value) is type(make(1))
    with pytest.raises(KdError, match=r":value is .* that holds something else in the skeleton"):
        folder.load(tmp_path / "m", Odd(make(2)))


@pytest.mark.parametrize("value", [1 + 2j, b"\x00\xff", range(1, 9, 2), np.float32(0.1), np.int64(7), Path("a/b")])
def test_a_stored_value_replaces_the_skeletons(value: Any, tmp_path: Path) -> None:
    folder.save(tmp_path / "m", Odd(value), None, {})
    loaded, _ = folder.load(tmp_path / "m", Odd(type(value)(3) if not isinstance(value, Path) else Path("c")))
    assert repr(loaded.value) == repr(value)


def test_what_changes_with_use_is_not_compared(tmp_path: Path) -> None:
    folder.save(tmp_path / "m", Odd(np.random.default_rng(1)), None, {})
    assert folder.load(tmp_path / "m", Odd(np.random.default_rng(2)))


BAD = {
    "numbers of a complex": {"$": "complex", "parts": ["1", "x"]},
    "a complex of one": {"$": "complex", "parts": ["1"]},
    "base64": {"$": "bytes", "base64": "a"},
    "a step of 0": {"$": "range", "items": [1, 2, 0]},
    "a huge range": {"$": "range", "items": [1, 2**80, 1]},
    "an object array": {"$": "numpy", "dtype": "|O", "base64": "AAAAAAAAAAA="},
    "too few bytes": {"$": "numpy", "dtype": "<f8", "base64": "AAAA"},
    "a path of a number": {"$": "path", "text": 5},
}


@pytest.mark.parametrize("what", BAD)
def test_a_value_that_no_encoder_writes_is_named(what: str) -> None:
    with pytest.raises(KdError, match="^:x"):
        Decoder(Classes(), lambda name, spec, place: torch.empty(0), {}).decode(BAD[what], MISSING, ":x")
