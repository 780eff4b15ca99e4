"""Weights of two and of three values: a sign, or a sign or zero, times a scale."""

from __future__ import annotations

import torch
from torch import Tensor

from kdkit_quantize.group_quantization import GroupCode, spread, storable_scale

THRESHOLD = 0.7
"""Of the mean absolute weight, below which a ternary weight is zero: the optimum for normal and for uniform weights is near it (Li et al., 2016)."""


def binary_code(weight: Tensor, group: int) -> GroupCode:
    """The nearest matrix of ±α: w ≈ α · sign(w) with α = mean |w| of each group, 0 counted as positive.

    Rastegari et al., "XNOR-Net", 2016 (arXiv:1603.05279), equation 6.

    Args:
        weight: (rows, columns), floating.
        group: columns that share a scale.

    >>> from kdkit_quantize.group_quantization import dequantize
    >>> dequantize(binary_code(torch.tensor([[1.0, -3.0, 0.0, 4.0]]), 4))
    tensor([[ 2., -2.,  2.,  2.]])
    """
    weight = weight.detach().float()
    scale = storable_scale(2 * _means(weight.abs(), torch.ones_like(weight), group))
    return GroupCode((weight >= 0).to(torch.uint8), scale, torch.full_like(scale, 0.5), group)


def ternary_code(weight: Tensor, group: int) -> GroupCode:
    """A matrix of -α, 0 and α: zero where |w| ≤ Δ = 0.7 · mean |w|, and α = mean |w| of the others, for each group.

    Li, Zhang, Liu, "Ternary Weight Networks", 2016 (arXiv:1605.04711).

    Args:
        weight: (rows, columns), floating.
        group: columns that share a scale.

    >>> from kdkit_quantize.group_quantization import dequantize
    >>> dequantize(ternary_code(torch.tensor([[1.0, -3.0, 0.0, 4.0]]), 4))
    tensor([[ 0.0000, -3.5000,  0.0000,  3.5000]])
    """
    weight = weight.detach().float()
    columns = weight.shape[1]
    limit = THRESHOLD * spread(_means(weight.abs(), torch.ones_like(weight), group), group, columns)
    kept = weight.abs() > limit
    scale = storable_scale(_means(weight.abs(), kept.float(), group))
    codes = (1 + torch.where(kept, weight.sign(), 0.0)).to(torch.uint8)
    return GroupCode(codes, scale, torch.ones(scale.shape, dtype=torch.uint8), group)


def _means(values: Tensor, counted: Tensor, group: int) -> Tensor:
    """The mean of the counted values of each group (rows, groups); 0 where none is."""
    pad = (0, -values.shape[1] % group)
    sums, counts = (torch.nn.functional.pad(each, pad).unflatten(1, (-1, group)).sum(-1) for each in (values * counted, counted))
    return sums / counts.clamp(min=1)
