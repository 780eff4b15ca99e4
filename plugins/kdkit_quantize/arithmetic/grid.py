"""The integers that a quantized value can be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Grid:
    """The integers of so many bits, signed or not.

    Attributes:
        bits: 2 to 16.
        signed: from -2^(bits-1), otherwise from 0.
        narrow: without the lowest signed integer, so that the grid is symmetric around 0.

    >>> Grid(8).lowest, Grid(8).highest, Grid(4, signed=True, narrow=True).lowest
    (0, 255, -7)
    """

    bits: int = 8
    signed: bool = False
    narrow: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"{self.bits} bits: a grid has 2 to 16")
        if self.narrow and not self.signed:
            raise ValueError("only a signed grid can be narrow")

    @property
    def lowest(self) -> int:
        """Its smallest integer."""
        return self.narrow - 2 ** (self.bits - 1) if self.signed else 0

    @property
    def highest(self) -> int:
        """Its largest integer."""
        return 2 ** (self.bits - self.signed) - 1

    @property
    def steps(self) -> int:
        """From the smallest integer to the largest one."""
        return self.highest - self.lowest

    @property
    def dtype(self) -> np.dtype:
        """The smallest numpy type that holds it.

        >>> Grid(4).dtype, Grid(16, signed=True).dtype
        (dtype('uint8'), dtype('int16'))
        """
        return np.dtype(f"{'' if self.signed else 'u'}int{8 if self.bits <= 8 else 16}")
