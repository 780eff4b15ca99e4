"""Bit packing: against a string of bits, and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from kdkit_quantize.bit_packing import pack_bits, packed_length, unpack_bits


def some_codes(rows: int, count: int, bits: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 2**bits, (rows, count), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@given(some.integers(1, 8), some.integers(1, 40), some.integers(0, 3), some.integers(0, 999))
def test_unpacking_undoes_packing(bits, count, rows, seed):
    codes = some_codes(rows, count, bits, seed)
    assert torch.equal(unpack_bits(pack_bits(codes, bits), bits, count), codes)


@given(some.integers(1, 8), some.integers(1, 40), some.integers(0, 999))
def test_the_bits_follow_each_other_without_a_gap_lowest_first(bits, count, seed):
    codes = some_codes(1, count, bits, seed)
    stream = "".join(f"{int(code):0{bits}b}"[::-1] for code in codes[0])
    stream += "0" * (-len(stream) % 8)
    expected = [int(stream[start : start + 8][::-1], 2) for start in range(0, len(stream), 8)]
    assert pack_bits(codes, bits).tolist() == [expected]
    assert packed_length(count, bits) == len(expected)


def test_a_code_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="9 does not fit in 3 bits"):
        pack_bits(torch.tensor([1, 9], dtype=torch.uint8), 3)
