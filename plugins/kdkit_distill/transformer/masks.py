"""Masks: which tokens are compared, and which token may attend to which."""

from __future__ import annotations

import torch
from torch import Tensor

from kdkit import Batch, KdError
from kdkit_distill.layers.pooling import real_tokens


def compared_tokens(batch: Batch, feature: Tensor) -> Tensor:
    """Which of a feature's tokens are not padding, (batch, tokens) bool; all if the batch has no `attention_mask`.

    Args:
        feature: (batch, tokens, ...), with the batch's number of tokens.

    Raises:
        KdError: the feature has another number of tokens.

    >>> compared_tokens(Batch(kwargs={"attention_mask": torch.tensor([[1, 0]])}), torch.zeros(1, 2, 8))
    tensor([[ True, False]])
    """
    real = real_tokens(batch)
    if real is None:
        return torch.ones(feature.shape[:2], dtype=torch.bool, device=feature.device)
    if real.shape != feature.shape[:2]:
        raise KdError(
            f"a layer outputs {tuple(feature.shape[:2])} tokens for {tuple(real.shape)} of the batch",
            "virtual tokens of prompt tuning can't be compared; merge or drop them",
        )
    return real.to(feature.device)


def seen_pairs(real: Tensor, causal: bool = False) -> Tensor:
    """Which token may attend to which, (batch, tokens, tokens) bool: no attention from or to padding, nor to later tokens if causal.

    >>> seen_pairs(torch.tensor([[True, True, False]])).int()
    tensor([[[1, 1, 0],
             [1, 1, 0],
             [0, 0, 0]]], dtype=torch.int32)
    """
    pairs = real[:, :, None] & real[:, None, :]
    return pairs.tril() if causal else pairs


def check_tokens(student: Tensor, teacher: Tensor, title: str) -> None:
    """Check that two layers output the same number of tokens.

    Raises:
        KdError: they do not.
    """
    if student.dim() != 3 or teacher.dim() != 3 or student.shape[:2] != teacher.shape[:2]:
        raise KdError(
            f"{title}: the student's layer outputs {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}", "both need the same tokens: use one tokenizer"
        )
