"""A packed weight: integers of a few bits with the scales and zero points of their groups, from which the float weight is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kdkit import Trait
from kdkit_quantize.bit_packing import pack_bits, unpack_bits
from kdkit_quantize.group_quantization import GroupCode, dequantize


class PackedWeight(nn.Module):
    """A weight in groups of integers.

    Its rows are the first axis of the weight, and its columns the other axes. Two layers with one weight share one instance.

    Args:
        code: the integers, scales and zero points of the weight as a matrix (rows, columns).
        bits: of an integer.
        shape: of the weight.
        dtype: that the weight had.

    >>> from kdkit_quantize.group_quantization import round_to_nearest
    >>> weight = torch.linspace(-1, 1, 32).reshape(2, 16)
    >>> packed = PackedWeight(round_to_nearest(weight, 4, 16), 4, weight.shape, weight.dtype)
    >>> packed.codes.shape, packed.kdkit_encoded, bool((packed() - weight).abs().max() < 0.04)
    (torch.Size([2, 8]), {'codes': 32}, True)
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    kdkit_traits = frozenset({Trait.PACKED_WEIGHTS})

    def __init__(self, code: GroupCode, bits: int, shape: torch.Size, dtype: torch.dtype):
        super().__init__()
        self.bits, self.group, self.shape, self.dtype = bits, code.group, tuple(shape), dtype
        self.register_buffer("codes", pack_bits(code.codes, bits))
        self.register_buffer("scale", code.scale)
        self.register_buffer("zero", code.zero)

    @property
    def columns(self) -> int:
        """The weight's numbers in a row."""
        return torch.Size(self.shape[1:]).numel()

    @property
    def kdkit_encoded(self) -> dict[str, int]:
        """How many weights the codes stand for."""
        return {"codes": torch.Size(self.shape).numel()}

    def forward(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight as floats; default: in the dtype that it had."""
        code = GroupCode(unpack_bits(self.codes, self.bits, self.columns), self.scale, self.zero, self.group)
        return dequantize(code, dtype or self.dtype).reshape(self.shape)

    def rows(self, numbers: Tensor) -> Tensor:
        """Some rows of the weight as floats: (...) integers -> (..., columns)."""
        code = GroupCode(unpack_bits(self.codes[numbers], self.bits, self.columns), self.scale[numbers], self.zero[numbers], self.group)
        return dequantize(code, self.dtype)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> PackedWeight:
        super()._apply(fn, recurse)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.codes.device)).dtype  # as the weight would have followed `half()`
        return self

    def extra_repr(self) -> str:
        return f"{self.shape}, {self.bits} bits, groups of {self.group}"
