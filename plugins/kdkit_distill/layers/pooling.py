"""Pooling: which tokens are not padding, and one vector for each item without padding."""

from __future__ import annotations

import torch
from torch import Tensor

from kdkit import Batch
from kdkit.tasks import at_least_float32


def real_tokens(batch: Batch, tokens: int | None = None) -> Tensor | None:
    """Which tokens are not padding, (batch, tokens) bool; None if the inputs have no mask.

    Args:
        tokens: number of tokens of a feature; None is returned if the mask has another number.

    >>> real_tokens(Batch(kwargs={"attention_mask": torch.tensor([[1, 1, 0]])}), 3)
    tensor([[ True,  True, False]])
    """
    mask = batch.kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2 and tokens in (None, mask.shape[1]):
        return mask != 0
    return None


def token_mean(values: Tensor, real: Tensor | None = None) -> Tensor:
    """The mean over an item's real tokens: (batch, tokens, ...) -> (batch, ...); 0 if it has none.

    Args:
        real: (batch, tokens) bool, which count; default: all. Values of other tokens are ignored.

    >>> token_mean(torch.tensor([[1.0, 3.0, torch.inf]]), torch.tensor([[True, True, False]]))
    tensor([2.])
    """
    if real is None:
        return values.mean(1)
    real = real.to(values.device).reshape(*real.shape, *[1] * (values.dim() - 2))
    return torch.where(real, values, 0.0).sum(1) / real.sum(1).clamp_min(1)


def vectors(feature: Tensor, batch: Batch, places: bool = False) -> Tensor:
    """One vector for each item, at least float32: (batch, size).

    Args:
        feature: (batch, size); tokens (batch, tokens, hidden), averaged over the real ones; or a map
            (batch, channels, height, width), averaged over its places, as heads do.
        places: flatten a map instead of averaging over its places.

    >>> batch = Batch(kwargs={"attention_mask": torch.tensor([[1, 1, 0]])})
    >>> vectors(torch.tensor([[[1.0], [3.0], [99.0]]]), batch)
    tensor([[2.]])
    >>> vectors(torch.zeros(2, 3, 4, 4), batch).shape, vectors(torch.zeros(2, 3, 4, 4), batch, places=True).shape
    (torch.Size([2, 3]), torch.Size([2, 48]))
    """
    feature = at_least_float32(feature)
    if feature.dim() == 3:
        return token_mean(feature, real_tokens(batch, feature.shape[1]))
    return feature.flatten(2).mean(-1) if feature.dim() > 3 and not places else feature.flatten(1)
