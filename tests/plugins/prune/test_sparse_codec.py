"""Sparse storage restores every bit, and takes the smaller of its forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdkit_prune.sparse_codec import decode, encode

TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool]


def sparse(rows: int, columns: int, zeros: float, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    kept = torch.rand(rows, columns, generator=random) >= zeros
    return (torch.randn(rows, columns, generator=random) * 20).to(dtype).masked_fill(~kept, 0)


@given(st.integers(1, 9), st.integers(1, 300), st.floats(0, 1), st.sampled_from(TYPES), st.integers(0, 99))
def test_every_bit_comes_back(rows, columns, zeros, dtype, seed):
    tensor = sparse(rows, columns, zeros, dtype, seed)
    restored = decode(*encode(tensor))
    assert restored.dtype == dtype
    assert torch.equal(restored, tensor)


@pytest.mark.parametrize("columns", [255, 256, 257, 40000, 70000])
def test_columns_of_any_number_come_back_from_csr(columns):
    tensor = torch.zeros(2, columns)
    tensor[0, -1], tensor[1, :3] = 2.0, torch.tensor([float("nan"), -0.0, float("inf")])
    parts, facts = encode(tensor)
    assert facts["form"] == "csr"
    assert torch.equal(decode(parts, facts).view(torch.int32), tensor.view(torch.int32))


def test_negative_zero_is_a_value():
    tensor = torch.tensor([[-0.0, 0.0, 0.0, 0.0] * 8])
    assert torch.equal(decode(*encode(tensor)).signbit(), tensor.signbit())


@pytest.mark.parametrize(("zeros", "form"), [(0.0, "dense"), (0.5, "bitmap"), (0.9, "bitmap"), (0.97, "csr")])
def test_the_smallest_form_is_taken(zeros, form):
    parts, facts = encode(sparse(256, 1024, zeros))
    assert facts["form"] == form
    size, density = sum(part.nbytes for part in parts.values()) / (256 * 1024 * 4), 1 - zeros
    assert size == pytest.approx({"dense": 1, "bitmap": density + 1 / 32, "csr": density * 1.5}[form], abs=0.01)


def test_a_mask_takes_one_bit_for_each_weight():
    parts, _ = encode(torch.rand(64, 64) > 0.5)
    assert sum(part.nbytes for part in parts.values()) == 64 * 64 / 8


def test_vectors_stay_as_they_are():
    assert encode(torch.zeros(8)) is None
