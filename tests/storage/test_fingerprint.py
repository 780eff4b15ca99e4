"""Fingerprints: equal values have equal ones, also in another process, and each part counts."""

import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from kdkit.storage.fingerprint import fingerprint

PLAIN = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | some.text(max_size=5) | some.binary(max_size=5),
    lambda inside: some.lists(inside, max_size=3) | some.dictionaries(some.text(max_size=3), inside, max_size=3) | some.tuples(inside, inside),
    max_leaves=8,
)


class Copied:
    """Its state is made anew each time that it is read."""

    def __init__(self, number: Any):
        self.number = number

    def __getstate__(self) -> dict[str, Any]:
        return {"number": self.number}


class Holder:
    """Holds anything."""

    def __init__(self, *held: Any):
        self.held = held


@given(PLAIN, PLAIN)
def test_values_have_one_fingerprint_if_they_are_equal_and_two_if_they_are_not(one: Any, other: Any) -> None:
    assert (fingerprint(Holder(one)) == fingerprint(Holder(other))) == (repr(one) == repr(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Holder(Copied(0), Copied(1)), Holder(Copied(0), Copied(2))),
        (Holder({Copied(1), Copied(2)}), Holder({Copied(1), Copied(3)})),
        (partial(max, 1), partial(max, 2)),
        (Holder(SimpleNamespace(a=1)), Holder(SimpleNamespace(a=2))),
    ],
)
def test_each_part_counts_also_one_that_is_made_while_it_is_read(one: Any, other: Any) -> None:
    assert fingerprint(one) != fingerprint(other)


@given(some.permutations([1, 2, 3, 4, 5]))
def test_the_order_in_a_set_does_not_count(numbers: list[int]) -> None:
    assert fingerprint(Holder({Copied(number) for number in numbers})) == fingerprint(Holder({Copied(number) for number in range(1, 6)}))


def test_a_value_that_holds_itself_has_one() -> None:
    (loop := []).append(loop)
    assert fingerprint(Holder(loop)) == fingerprint(Holder(loop)) != fingerprint(Holder([]))


@pytest.mark.slow
def test_another_process_finds_the_same() -> None:
    code = "from tests.storage.test_fingerprint import *; print(fingerprint(Holder({Copied(3), Copied('a')}, frozenset('xyz'), partial(max, 1))))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == fingerprint(Holder({Copied(3), Copied("a")}, frozenset("xyz"), partial(max, 1)))
