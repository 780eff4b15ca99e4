"""Numbers as people write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as some

from kdkit.errors import KdError
from kdkit.parameters.command_line import read_options
from kdkit.parameters.number_text import read_number
from kdkit.parameters.settings import Settings, param
from kdkit.parameters.tokenizer import split

NUMBERS = some.floats(allow_nan=False, allow_infinity=False)
FACTORS = some.floats(1, 1e6)


class Sample(Settings):
    rate: float = param(0.5, "a number")
    cut: float = param(0.5, "a share that goes", share="removed")
    size: float = param(0.5, "a share that stays", share="kept")
    steps: int = param(1, "a whole number")
    level: float = param(50, "a percentile", unit="%")
    time: float = param(1, "a time", unit="ms")
    memory: int = param(1, "bytes", unit="B")
    by_layer: dict[str, float] = param({}, "shares by name", share="removed")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("--rate 50%", 0.5),
        ("--rate 1.1%", 0.011),
        ("--rate 1e-3", 0.001),
        ("--rate .5", 0.5),
        ("--rate -10%", -0.1),
        ("--rate 2k", 2000),
        ("--cut 4x", 0.75),
        ("--size 4x", 0.25),
        ("--size 4X", 0.25),
        ("--size 0.5x", 0.5),
        ("--cut 50%", 0.5),
        ("--steps 2k", 2000),
        ("--steps 1.5k", 1500),
        ("--steps 10m", 10_000_000),
        ("--steps 10M", 10_000_000),
        ("--steps 1e3", 1000),
        ("--level 99.9%", 99.9),
        ("--time 2s", 2000),
        ("--time 1m", 60_000),
        ("--memory 2MB", 2_000_000),
        ("--memory 10m", 10_000_000),
        ("--memory 1KiB", 1024),
        ("--by-layer a=4x b=50%", {"a": 0.75, "b": 0.5}),
    ],
)
def test_a_number_is_read_by_what_its_option_means(text, value):
    assert [*read_options(Sample, split(text), "sample").values()] == [value]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--rate 4x", "'4x' is a factor, not a number"),
        ("--steps 4x", "'4x' is a factor, not a number"),
        ("--size 0x", "greater than 0"),
        ("--steps 50%", "'50%' is not a whole number"),
        ("--steps 0.5", "'0.5' is not a whole number"),
        ("--steps 1e400", "not a whole number"),
        ("--steps inf", "not a whole number"),
        ("--rate 4y", "'4y' is not a number: 'y' is none of k, m, g, b and %"),
        ("--rate half", "'half' is not a number"),
        ("--rate %", "'%' is not a number"),
        ("--rate x", "'x' is not a number"),
    ],
)
def test_what_means_nothing_for_the_option_is_one_message(text, message):
    with pytest.raises(KdError, match="sample: ") as caught:
        read_options(Sample, split(text), "sample")
    assert message in caught.value.message


@given(NUMBERS)
def test_a_plain_number_is_read_as_python_reads_it(value):
    assert read_number(repr(value), float) == value


@given(some.integers())
def test_a_whole_number_is_exact_however_large(value):
    assert read_number(str(value), int, "B") == value


@given(some.decimals(0, 1000, places=3))
def test_a_percentage_is_a_hundredth_of_the_number_rounded_once(value):
    assert read_number(f"{value}%", float) == float(value / 100)
    assert read_number(f"{value}%", float, unit="%") == float(value)


@given(FACTORS)
def test_what_a_factor_keeps_and_removes_is_the_whole(factor):
    kept, removed = (read_number(f"{factor!r}x", float, share=share) for share in ("kept", "removed")) if "e" not in repr(factor) else (1.0, 0.0)
    assert 0 < kept <= 1
    assert kept + removed == pytest.approx(1)


@given(FACTORS, FACTORS)
def test_a_larger_factor_never_keeps_more(one, other):
    kept = [read_number(f"{factor:f}x", float, share="kept") for factor in sorted((one, other))]
    assert kept[0] >= kept[1]


@given(some.text(max_size=8))
def test_any_text_is_a_number_or_refused(text):
    for base in (int, float):
        with contextlib.suppress(ValueError):
            assert isinstance(read_number(text, base), base)


def test_a_share_of_something_else_is_refused_where_it_is_declared():
    with pytest.raises(KdError, match="share='lost' is not one of kept, removed"):
        param(0.5, "a share", share="lost")
