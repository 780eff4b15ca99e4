"""Items: identified by their content, without padding.

An item's key is a hash of its inputs as the model gets them. So order, shuffling and batch size do not matter, and an input
that is not cached can't be confused with a cached one. Padding (by `attention_mask`) is not part of an item.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdkit import Batch


@dataclass(frozen=True)
class Spans:
    """The start and the length of each item in a batch of tokens; everything else is padding.

    >>> found = Spans.of(Batch(kwargs={"input_ids": torch.ones(2, 4, dtype=torch.long), "attention_mask": torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0]])}))
    >>> found.first.tolist(), found.length.tolist(), found.tokens
    ([0, 1], [3, 2], 4)
    """

    first: np.ndarray
    length: np.ndarray
    tokens: int

    @classmethod
    def of(cls, batch: Batch) -> Spans | None:
        """The spans of a batch; None if its inputs are not tokens."""
        mask = batch.kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            real = mask.detach().cpu().numpy() != 0
            some = real.any(1)
            first = np.where(some, real.argmax(1), 0)
            last = np.where(some, real.shape[1] - real[:, ::-1].argmax(1), 0)
            return cls(first, last - first, real.shape[1])
        inputs = (*batch.args, *batch.kwargs.values())
        tokens = next((item for item in inputs if isinstance(item, Tensor) and item.ndim == 2 and not item.is_floating_point() and not item.is_complex()), None)
        if tokens is None:
            return None
        return cls(np.zeros(len(tokens), np.int64), np.full(len(tokens), tokens.shape[1]), tokens.shape[1])


def keys(batch: Batch, spans: Spans | None = None) -> np.ndarray:
    """A hash of each item's inputs: (batch,) of 16 bytes; names, types, shapes and values count, labels and padding do not.

    >>> one, other = keys(Batch((torch.tensor([[1.0], [2.0]]),))), keys(Batch((torch.tensor([[2.0], [1.0]]),)))
    >>> bool((one == other[::-1]).all()), bool((one == other).any())
    (True, False)
    """
    spans = spans or Spans.of(batch)
    named = [*((str(index), item) for index, item in enumerate(batch.args)), *sorted(batch.kwargs.items())]
    begun = hashlib.blake2b(digest_size=16)
    columns: list[tuple[np.ndarray, int]] = []
    for name, item in named:
        if not isinstance(item, Tensor):
            begun.update(f"{name} {item!r};".encode())
            continue
        along = spans is not None and item.ndim > 1 and item.shape[1] == spans.tokens
        if name == "attention_mask" and spans is not None and _all_real(item, spans):
            continue
        begun.update(f"{name} {item.dtype} {tuple(item.shape[2 if along else 1 :])};".encode())
        columns.append((_bytes(item), item.shape[1] if along else 0))
    found = []
    for row in range(batch.size):
        each = begun.copy()
        for values, tokens in columns:
            if tokens and spans is not None:
                width, first = values.shape[1] // tokens, int(spans.first[row])
                each.update(struct.pack("<q", spans.length[row]))
                each.update(values[row, first * width : (first + int(spans.length[row])) * width].data)
            else:
                each.update(values[row].data)
        found.append(each.digest())
    return np.array(found, dtype="S16")


def _all_real(mask: Tensor, spans: Spans) -> bool:
    """Whether a mask only marks where items begin and end."""
    return mask.ndim == 2 and bool(((mask != 0).sum(1).cpu().numpy() == spans.length).all())


def _bytes(tensor: Tensor) -> np.ndarray:
    """(items, bytes of an item), uint8."""
    flat = tensor.detach().cpu().contiguous().reshape(len(tensor), -1)
    return flat.view(torch.uint8).numpy()
