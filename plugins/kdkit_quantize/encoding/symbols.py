"""Symbols: a tensor as streams of small integers whose frequencies differ, from which an entropy coder saves bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdkit_quantize.bit_packing import pack_bits, unpack_bits

FEW = 4096
"""A tensor with at most so many different values is a table of them and the index of each."""
WIDTHS = (8, 7, 6, 5, 4, 3)
"""Bits of the integers that may be packed in bytes."""
_INTEGERS: dict[int, Any] = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Symbols:
    """A tensor as symbols.

    Attributes:
        kind: "integers" packed in bytes, "table" for few different values, or "planes" for the first, second, ... bytes of all values.
        streams: of symbols, each one-dimensional, int32.
        table: the different values, for the kind "table".
        width: bits of a symbol, for the kind "integers".
    """

    kind: str
    streams: list[np.ndarray]
    table: Tensor | None = None
    width: int = 8


def entropy_bits(symbols: np.ndarray) -> float:
    """Shannon's bound on the bits that a code for single symbols takes, for the whole stream.

    >>> entropy_bits(np.array([0, 1, 0, 1])), entropy_bits(np.array([7, 7]))
    (4.0, 0.0)
    """
    counts = np.bincount(symbols)
    counts = counts[counts > 0]
    return abs(float((counts * np.log2(len(symbols) / counts)).sum()))


def symbols_of(tensor: Tensor) -> Symbols:
    """A tensor as the symbols that take the fewest bits.

    >>> symbols_of(torch.tensor([0.5, -1.0, 0.5])).kind, symbols_of(torch.arange(5000.0)).kind
    ('table', 'planes')
    """
    flat = tensor.contiguous().view(_INTEGERS[tensor.element_size()])
    if tensor.element_size() == 1:
        readings = (Symbols("integers", [_integers(flat, width)], width=width) for width in WIDTHS)
        return min(readings, key=lambda reading: entropy_bits(reading.streams[0]))
    values, places = torch.unique(flat, return_inverse=True)
    if len(values) <= FEW and values.nbytes < tensor.nbytes:
        return Symbols("table", [places.flatten().numpy().astype(np.int32)], table=values)
    planes = flat.flatten().numpy().view(np.uint8).reshape(-1, tensor.element_size())
    return Symbols("planes", [planes[:, plane].astype(np.int32) for plane in range(planes.shape[1])])


def tensor_of(symbols: Symbols, shape: list[int], dtype: torch.dtype) -> Tensor:
    """The tensor, bit for bit, that `symbols_of` was given."""
    if symbols.kind == "integers":
        rows, columns = int(np.prod(shape[:-1])), shape[-1]
        codes = torch.from_numpy(symbols.streams[0].astype(np.uint8)).reshape(rows, -1)
        return pack_bits(codes, symbols.width)[:, :columns].reshape(shape).view(dtype)
    if symbols.kind == "table":
        assert symbols.table is not None
        return symbols.table[torch.from_numpy(symbols.streams[0].astype(np.int64))].reshape(shape).view(dtype)
    planes = np.stack(symbols.streams, 1).astype(np.uint8)
    return torch.from_numpy(planes.reshape(-1)).view(dtype).reshape(shape)


def _integers(packed: Tensor, width: int) -> np.ndarray:
    """The bytes of each row as integers of that width; all integers that begin in it count, and bits behind its end are zero."""
    rows = packed.reshape(-1, packed.shape[-1])
    return unpack_bits(rows, width, -(-8 * rows.shape[1] // width)).flatten().numpy().astype(np.int32)
