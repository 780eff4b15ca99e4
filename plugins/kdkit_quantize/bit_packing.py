"""Bit packing: integers of 1 to 8 bits in bytes without a gap."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack unsigned integers along the last axis: the first integer is in the lowest bits of the first byte.

    Args:
        codes: (..., count) uint8, each below 2^bits.
        bits: of each integer, 1 to 8.

    Returns:
        (..., ⌈count · bits / 8⌉) uint8; the bits behind the last integer are zero.

    Raises:
        ValueError: an integer does not fit.

    >>> pack_bits(torch.tensor([1, 2, 3], dtype=torch.uint8), 4)
    tensor([33,  3], dtype=torch.uint8)
    """
    if codes.numel() and int(codes.max()) >> bits:
        raise ValueError(f"{int(codes.max())} does not fit in {bits} bits")
    count = codes.shape[-1]
    together, within = _period(bits)
    padded = torch.nn.functional.pad(codes, (0, -count % together)).to(torch.int64).unflatten(-1, (-1, together))
    words = sum(padded[..., place] << bits * place for place in range(together))
    packed = torch.stack([words >> 8 * place & 255 for place in range(within)], -1).to(torch.uint8)
    return packed.flatten(-2)[..., : packed_length(count, bits)].contiguous()


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """The integers that `pack_bits` packed.

    Args:
        packed: (..., ⌈count · bits / 8⌉) uint8.
        bits: of each integer.
        count: of integers along the last axis.

    Returns:
        (..., count) uint8.

    >>> unpack_bits(torch.tensor([33, 3], dtype=torch.uint8), 4, 3)
    tensor([1, 2, 3], dtype=torch.uint8)
    """
    together, within = _period(bits)
    if together == 1:
        return packed
    if within == 1:  # no integer crosses a byte
        codes = torch.stack([packed >> bits * place & 2**bits - 1 for place in range(together)], -1)
    else:
        padded = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % within)).to(torch.int64).unflatten(-1, (-1, within))
        words = sum(padded[..., place] << 8 * place for place in range(within))
        codes = torch.stack([words >> bits * place & 2**bits - 1 for place in range(together)], -1).to(torch.uint8)
    return codes.flatten(-2)[..., :count]


def packed_length(count: int, bits: int) -> int:
    """How many bytes `count` integers take.

    >>> packed_length(10, 3)
    4
    """
    return -(-count * bits // 8)


def _period(bits: int) -> tuple[int, int]:
    """How many integers fill how many bytes."""
    together = 8 // math.gcd(bits, 8)
    return together, together * bits // 8
