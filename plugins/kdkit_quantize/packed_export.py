"""Packed layers in ONNX: products and look-ups that onnxruntime runs on packed integers, and float layers for all others.

onnxruntime's `MatMulNBits` takes weights in 2, 4 or 8 bits in blocks of 16, 32, 64, ... along a row. Weights in 3 bits are stored in 4 there, and signs in 2.
`GatherBlockQuantized` looks rows up in tables of 4 or 8 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdkit_quantize.bit_packing import pack_bits, unpack_bits
from kdkit_quantize.packed_weight import PackedWeight

SMALLEST_BLOCK = 16


class Blocks(nn.Module):
    """A packed weight in the layout of onnxruntime.

    Attributes:
        bits: of an integer, 2, 4 or 8.
        block: weights in a block, a power of two.
        codes: (rows, blocks, block · bits / 8) uint8.
        scale: (rows, blocks) float32.
        zero: (rows, ⌈blocks · bits / 8⌉) uint8, or (rows, blocks) float32.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, packed: PackedWeight):
        super().__init__()
        self.bits, self.block, self.rows, self.columns = bits_of(packed), block_of(packed), packed.shape[0], packed.columns
        codes = unpack_bits(packed.codes, packed.bits, packed.columns)
        padded = functional.pad(codes, (0, -packed.columns % self.block)).unflatten(1, (-1, self.block))
        self.register_buffer("codes", pack_bits(padded, self.bits))
        self.register_buffer("scale", packed.scale.float())
        self.register_buffer("zero", packed.zero.float() if packed.zero.is_floating_point() else pack_bits(packed.zero, self.bits))


class BlockedLinear(nn.Module):
    """A packed linear layer, which an ONNX graph holds as `MatMulNBits`.

    Args:
        layer: computes the same in torch.
        packed: its weight, for which `runs_packed` is true.
    """

    def __init__(self, layer: nn.Module, packed: PackedWeight):
        super().__init__()
        self.layer, self.blocks = layer, Blocks(packed)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if not torch.onnx.is_in_onnx_export():
            return self.layer(x)
        blocks = self.blocks
        facts: Any = {"K": blocks.columns, "N": blocks.rows, "bits": blocks.bits, "block_size": blocks.block}
        inputs = (x, blocks.codes, blocks.scale, blocks.zero)
        product = torch.onnx.ops.symbolic("com.microsoft::MatMulNBits", inputs, facts, dtype=x.dtype, shape=(*x.shape[:-1], blocks.rows), version=1)
        bias: Any = self.layer.bias
        return product if bias is None else product + bias


class BlockedEmbedding(nn.Module):
    """A packed embedding, which an ONNX graph holds as `GatherBlockQuantized`."""

    def __init__(self, layer: nn.Module, packed: PackedWeight):
        super().__init__()
        self.layer, self.blocks = layer, Blocks(packed)

    def forward(self, ids: Tensor) -> Tensor:
        """(...) integers -> (..., width)."""
        if not torch.onnx.is_in_onnx_export():
            return self.layer(ids)
        blocks = self.blocks
        inputs = (blocks.codes.flatten(1), ids, blocks.scale, blocks.zero)
        facts: Any = {"gather_axis": 0, "quantize_axis": 1, "block_size": blocks.block, "bits": blocks.bits}
        return torch.onnx.ops.symbolic("com.microsoft::GatherBlockQuantized", inputs, facts, dtype=torch.float32, shape=(*ids.shape, blocks.columns), version=1)


def bits_of(packed: PackedWeight) -> int:
    """The bits that an integer takes in onnxruntime, which has no operator for 1 and 3."""
    return {1: 2, 3: 4}.get(packed.bits, packed.bits)


def block_of(packed: PackedWeight) -> int:
    """The size of onnxruntime's blocks: that of the groups, or for rows of one group the next power of two."""
    if packed.scale.shape[1] > 1:
        return packed.group
    return max(SMALLEST_BLOCK, 1 << (packed.columns - 1).bit_length())


def multiplies_packed(packed: nn.Module) -> bool:
    """Whether onnxruntime multiplies with a weight as it is packed."""
    if not isinstance(packed, PackedWeight):
        return False
    block = block_of(packed)
    fits = bits_of(packed) in (2, 4, 8) and block >= SMALLEST_BLOCK and block & (block - 1) == 0
    return fits and not (packed.zero.is_floating_point() and bits_of(packed) == 8)


def looks_up_packed(packed: nn.Module) -> bool:
    """Whether onnxruntime looks rows up in a table as it is packed."""
    if not isinstance(packed, PackedWeight):
        return False
    return multiplies_packed(packed) and bits_of(packed) in (4, 8) and not packed.zero.is_floating_point() and packed.columns % block_of(packed) == 0
