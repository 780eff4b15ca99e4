"""Columns: the parts of a signal, and how each is encoded as bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from kdkit import KdError
from kdkit_distill.signals import Signal, TopK
from kdkit_distill.teachers.cache.items import Spans

Kept = Literal["fp32", "fp16"]
"""The precision of stored numbers."""

Plain = Literal["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
"""Types that numpy and torch share."""

LARGEST = 1e18
"""Of the values of a signal; the square of a larger one is near the end of float32, and no loss of it has a gradient."""


@dataclass(frozen=True)
class Column:
    """One part of a row.

    Attributes:
        name: "logits", "feature NAME", or a part of a top-k distribution.
        stored: type in the file, or "bits" for class numbers packed with as few bits as possible.
        given: the torch type of the teacher's output, which a reader returns.
        shape: of the values of one item, or of one token.
        tokens: whether a row has one value for each token of its item.
        bits: the number of bits of a packed number.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)

    name: str
    stored: Plain | Literal["bits"]
    given: Plain | Literal["bfloat16"]
    shape: Annotated[tuple[Annotated[int, Field(ge=1, le=2**40)], ...], Field(max_length=8)]
    tokens: bool
    bits: Annotated[int, Field(ge=0, le=32)] = 0

    @property
    def width(self) -> int:
        """Bytes for one item, or for one token."""
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


def is_absurd(values: Tensor) -> bool:
    """Whether any value is nan, above `LARGEST` in size, or infinite; minus infinity is the logit of a class that is ruled out.

    >>> [is_absurd(torch.tensor([0.0, value])) for value in (1.0, -torch.inf, torch.inf, torch.nan, -1e30)]
    [False, False, True, True, True]
    """
    if not values.is_floating_point() or not values.numel():
        return False
    # the maximum is nan if any value is
    return not bool((values.amax() <= LARGEST) & (values.masked_fill(values == -torch.inf, 0).amin() >= -LARGEST))


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
        given: Any = str(values.dtype).removeprefix("torch.")
        if name == "indices" and isinstance(logits, TopK):
            found[Column(name, "bits", given, shape, along, max(1, (logits.classes - 1).bit_length()))] = values.cpu().numpy()
            continue
        stored: Any = "float16" if kept == "fp16" and values.is_floating_point() else "float32" if given in ("bfloat16", "float16") else given
        plain = values.detach().cpu().to(getattr(torch, stored))
        if stored == "float16" and bool((torch.isinf(plain) & ~torch.isinf(values.detach().cpu())).any()):
            raise KdError(f"{name} of the teacher is too large for fp16, above 65504", "use full precision: --cache-as fp32")
        found[Column(name, stored, given, shape, along)] = plain.numpy()
    return found


def describe_columns(columns: Sequence[Column]) -> str:
    """The columns, for a message."""
    return ", ".join(f"{column.name} {column.given} {('tokens', *column.shape) if column.tokens else column.shape}" for column in columns)
