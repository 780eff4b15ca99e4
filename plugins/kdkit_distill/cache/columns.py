"""Columns: the parts of a signal, and how each lies in bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kdkit.errors import KdError
from kdkit_distill.cache.items import Spans
from kdkit_distill.signals import Signal, TopK

Kept = Literal["fp32", "fp16"]
"""What numbers are kept as."""


@dataclass(frozen=True)
class Column:
    """One part of a row.

    Attributes:
        name: "logits", "feature NAME", or a part of a top-k distribution.
        stored: type in the file, or "bits" for class numbers packed as tightly as they go.
        given: the torch type that the teacher gave, and a reader gets.
        shape: of what stands at one item, or at one token.
        tokens: whether a row has as many as its item has tokens.
        bits: of one number, where they are packed.
    """

    name: str
    stored: str
    given: str
    shape: tuple[int, ...]
    tokens: bool
    bits: int = 0

    @property
    def width(self) -> int:
        """Bytes at one item, or at one token."""
        numbers = math.prod(self.shape)
        return -(-numbers * self.bits // 8) if self.bits else numbers * np.dtype(self.stored).itemsize

    def write(self, values: np.ndarray) -> np.ndarray:
        """(..., width) bytes of (..., *shape) values."""
        flat = values.reshape(*values.shape[: values.ndim - len(self.shape)], -1)
        if self.bits:
            spread = np.unpackbits(np.ascontiguousarray(flat, ">u4").view(np.uint8).reshape(*flat.shape, 4), axis=-1)[..., 32 - self.bits :]
            return np.packbits(spread.reshape(*flat.shape[:-1], -1), axis=-1)
        return np.ascontiguousarray(flat, self.stored).view(np.uint8)

    def read(self, found: np.ndarray) -> Tensor:
        """(..., *shape) values of (..., width) bytes."""
        shape = (*found.shape[:-1], *self.shape)
        if self.bits:
            spread = np.unpackbits(found, axis=-1)[..., : math.prod(self.shape) * self.bits].reshape(*shape, self.bits)
            return torch.from_numpy(spread.astype(np.int64) @ (1 << np.arange(self.bits)[::-1]))
        values = torch.from_numpy(np.ascontiguousarray(found).view(self.stored).reshape(shape))
        return values.to(getattr(torch, self.given))


def columns_of(signal: Signal, spans: Spans | None, kept: Kept) -> dict[Column, np.ndarray]:
    """A signal as columns, with the values of each."""
    logits = signal.logits
    named: dict[str, Tensor] = {f"feature {name}": values for name, values in signal.features.items()}
    if isinstance(logits, TopK):
        named |= {"values": logits.values, "tail": logits.tail, "indices": logits.indices}
    else:
        named |= {"logits": logits}
    found = {}
    for name, values in sorted(named.items()):
        along = spans is not None and values.ndim > (1 if name == "tail" else 2) and values.shape[1] == spans.tokens
        shape = tuple(values.shape[2 if along else 1 :])
        given = str(values.dtype).removeprefix("torch.")
        if name == "indices" and isinstance(logits, TopK):
            found[Column(name, "bits", given, shape, along, max(1, (logits.classes - 1).bit_length()))] = values.cpu().numpy()
            continue
        stored = "float16" if kept == "fp16" and values.is_floating_point() else "float32" if given in ("bfloat16", "float16") else given
        plain = values.detach().cpu().to(getattr(torch, stored))
        if stored == "float16" and bool((torch.isinf(plain) & ~torch.isinf(values.detach().cpu())).any()):
            raise KdError(f"{name} of the teacher is too large for fp16, above 65504", "keep it whole: --cache-as fp32")
        found[Column(name, stored, given, shape, along)] = plain.numpy()
    return found


def told(columns: Sequence[Column]) -> str:
    """The columns, for a message."""
    return ", ".join(f"{column.name} {column.given} {('tokens', *column.shape) if column.tokens else column.shape}" for column in columns)
