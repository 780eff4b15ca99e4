"""What is written to a folder is read again as it was, and what could not be read again is not written."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from kdkit.errors import KdError
from kdkit.storage.layout import read_json, write_json

PLAIN = some.recursive(
    some.none() | some.booleans() | some.integers(-(2**70), 2**70) | some.floats() | some.text(some.characters(), max_size=5),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(some.characters(exclude_characters="$"), max_size=3), inner, max_size=3),
    max_leaves=12,
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=some.dictionaries(some.text(some.characters(exclude_characters="$"), max_size=3), PLAIN, max_size=4))
def test_plain_data_comes_back_with_nan_and_infinity_too(data: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", data)
    assert repr(read_json(tmp_path / "a.json")) == repr(data)
    json.loads((tmp_path / "a.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (nested(500), "nested deeper than"),
        (nested(5000), "nested deeper than"),
        (10**1000, "a number has 1,001 digits"),
        ([10**9000], "it holds a number of"),
        ({1, 2}, "it holds a value of type set"),
        ({(1, 2): 3}, "a key of a dict is not text"),
        ({1: 2, "1": 3}, "the key '1' occurs twice"),
        (object(), "it holds a value of type object"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(KdError, match=message):
        write_json(tmp_path / "a.json", {"x": value})
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number has 5,000 digits"),
        (b"[" * 100_000, "nested deeper than"),
        (b'{"a": \xff}', "it is not text in UTF-8"),
        (b'{"a": 1', "it is not JSON from line 1 on"),
        (b"\x00" * 100, "it is not JSON"),
        ("\ufeff{}".encode(), "it is not JSON"),
    ],
)
def test_a_damaged_file_is_one_line_in_plain_words(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(KdError, match=message) as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < len(str(tmp_path)) + 200


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(KdError, match="is missing"):
        read_json(tmp_path / "a.json")


def test_nan_is_a_fact(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"report": [math.nan, -math.inf]})
    one, two = read_json(tmp_path / "a.json")["report"]
    assert math.isnan(one)
    assert two == -math.inf
