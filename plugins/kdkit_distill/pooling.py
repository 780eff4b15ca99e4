"""Pooling: which tokens are no padding, and what an item's feature comes down to without it."""

from __future__ import annotations

import torch
from torch import Tensor

from kdkit.data import Batch
from kdkit.tasks.contract import wide


def real_tokens(batch: Batch, tokens: int | None = None) -> Tensor | None:
    """Which tokens are no padding, (batch, tokens) bool; None where the inputs don't say.

    Args:
        tokens: how many a feature has; of another number the inputs say nothing.

    >>> real_tokens(Batch(kwargs={"attention_mask": torch.tensor([[1, 1, 0]])}), 3)
    tensor([[ True,  True, False]])
    """
    mask = batch.kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2 and tokens in (None, mask.shape[1]):
        return mask != 0
    return None


def token_mean(values: Tensor, real: Tensor | None = None) -> Tensor:
    """The mean over an item's tokens that count: (batch, tokens, ...) -> (batch, ...); 0 where none does.

    Args:
        real: (batch, tokens) bool, which count; all when not said. What stands elsewhere does not matter.

    >>> token_mean(torch.tensor([[1.0, 3.0, torch.inf]]), torch.tensor([[True, True, False]]))
    tensor([2.])
    """
    if real is None:
        return values.mean(1)
    real = real.to(values.device).reshape(*real.shape, *[1] * (values.dim() - 2))
    return torch.where(real, values, 0.0).sum(1) / real.sum(1).clamp_min(1)


def vectors(feature: Tensor, batch: Batch, places: bool = False) -> Tensor:
    """One vector an item, at least float32: (batch, size).

    Args:
        feature: (batch, size); tokens (batch, tokens, hidden), of which the mean of the real ones is taken; or a map
            (batch, channels, height, width), of which the mean over its places is taken, as heads do.
        places: keep a map's places apart, all its numbers in a row.

    >>> batch = Batch(kwargs={"attention_mask": torch.tensor([[1, 1, 0]])})
    >>> vectors(torch.tensor([[[1.0], [3.0], [99.0]]]), batch)
    tensor([[2.]])
    >>> vectors(torch.zeros(2, 3, 4, 4), batch).shape, vectors(torch.zeros(2, 3, 4, 4), batch, places=True).shape
    (torch.Size([2, 3]), torch.Size([2, 48]))
    """
    feature = wide(feature)
    if feature.dim() == 3:
        return token_mean(feature, real_tokens(batch, feature.shape[1]))
    return feature.flatten(2).mean(-1) if feature.dim() > 3 and not places else feature.flatten(1)
