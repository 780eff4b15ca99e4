"""Values as text: short, and read back as they were."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdkit.parameters.command_line import read_options, write_options
from kdkit.parameters.settings import Settings, param
from kdkit.parameters.tokenizer import split
from kdkit.parameters.value_text import write_value


class Rates(Settings):
    epochs: float = param(1.0, "passes")
    shares: tuple[float, ...] = param((), "several")
    bits: dict[str, float] = param({}, "by name")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_reads_back_as_the_same_number(value: float) -> None:
    assert float(write_value(value)) == value


@given(st.integers(-(10**15), 10**15))
def test_a_whole_number_has_no_decimal_point(value: int) -> None:
    assert write_value(float(value)).lstrip("-").isdigit()


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"epochs": 8.0}, "--epochs 8"),
        ({"epochs": 100000.0}, "--epochs 100000"),
        ({"shares": (1.0, 0.5)}, "--shares 1 0.5"),
        ({"bits": {"head": 2.0}}, "--bits head=2"),
    ],
)
def test_options_show_whole_numbers_without_a_decimal_point(values: dict, line: str) -> None:
    settings = Rates(**values)
    assert " ".join(write_options(settings)) == line
    assert Rates(**read_options(Rates, split(line), "rates")) == settings
