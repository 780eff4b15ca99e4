"""A shared weight: a table of few values that train, and for each weight the packed index of its value."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdkit import Trait
from kdkit_quantize.bit_packing import pack_bits, unpack_bits
from kdkit_quantize.encoding.k_means import nearest_values


class SharedWeight(nn.Module):
    """A weight whose numbers are taken from a table.

    The gradient of a value is the sum of the gradients of the weights that share it. Weights that are zero have index 0, which stands for a zero that
    does not train, so that a pruned weight stays pruned.

    Args:
        weight: any shape, floating.
        bits: of an index, 1 to 8.

    >>> shared = SharedWeight(torch.tensor([[0.0, 1.0, 1.1, -2.0, 3.0]]), 2)
    >>> shared().detach()
    tensor([[ 0.0000,  1.0500,  1.0500, -2.0000,  3.0000]])
    """

    codes: Tensor
    kdkit_traits = frozenset({Trait.PACKED_WEIGHTS, Trait.TRAINABLE})

    def __init__(self, weight: Tensor, bits: int):
        super().__init__()
        self.bits, self.shape = bits, tuple(weight.shape)
        matrix = weight.detach().flatten(1)
        self.has_zero = bool((matrix == 0).any())
        values, places = nearest_values(matrix[matrix != 0], 2**bits - self.has_zero)
        codes = torch.zeros(matrix.shape, dtype=torch.uint8)
        codes[matrix != 0] = (places + self.has_zero).to(torch.uint8)
        self.values = nn.Parameter(values.to(weight.dtype))
        self.register_buffer("codes", pack_bits(codes, bits))

    @property
    def columns(self) -> int:
        """The weight's numbers in a row."""
        return torch.Size(self.shape[1:]).numel()

    @property
    def kdkit_encoded(self) -> dict[str, int]:
        """How many weights the codes stand for, besides the values that are parameters themselves."""
        return {"codes": torch.Size(self.shape).numel() - self.values.numel()}

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight."""
        return self.values.dtype

    def forward(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight as floats."""
        return self._looked_up(unpack_bits(self.codes, self.bits, self.columns), dtype).reshape(self.shape)

    def rows(self, numbers: Tensor) -> Tensor:
        """Some rows of the weight as floats: (...) integers -> (..., columns)."""
        return self._looked_up(unpack_bits(self.codes[numbers], self.bits, self.columns))

    def _looked_up(self, codes: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        table = torch.cat([self.values.new_zeros(1), self.values]) if self.has_zero else self.values
        return table.to(dtype or self.dtype)[codes.long()]

    def extra_repr(self) -> str:
        return f"{self.shape}, {self.values.numel() + self.has_zero} values"
