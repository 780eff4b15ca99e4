"""Group quantization: the rows of a matrix in groups, each with a scale and a zero point of its own.

A weight is (code - zero) · scale, where the code is an integer of a few bits. A row is cut into groups of neighbours; the last one may be shorter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class GroupCode(NamedTuple):
    """A matrix in groups.

    Attributes:
        codes: (rows, columns) uint8.
        scale: (rows, groups) float16, or float32 where a scale is out of float16's range.
        zero: (rows, groups) uint8, or floating for zero points between the codes.
        group: columns in a group.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    group: int


def dequantize(code: GroupCode, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix (rows, columns) that a code stands for.

    >>> code = GroupCode(torch.tensor([[0, 3, 7]], dtype=torch.uint8), torch.tensor([[2.0, 1.0]]), torch.tensor([[1, 0]], dtype=torch.uint8), 2)
    >>> dequantize(code)
    tensor([[-2.,  4.,  7.]])
    """
    columns = code.codes.shape[-1]
    return (code.codes.to(dtype) - spread(code.zero, code.group, columns).to(dtype)) * spread(code.scale, code.group, columns).to(dtype)


def spread(values: Tensor, group: int, columns: int) -> Tensor:
    """A value for each group (..., groups) as one for each column (..., columns).

    >>> spread(torch.tensor([5, 6]), 2, 3)
    tensor([5, 5, 6])
    """
    return values.unsqueeze(-1).expand(*values.shape, group).flatten(-2)[..., :columns]


def round_to_nearest(weight: Tensor, bits: int, group: int) -> GroupCode:
    """The smallest grid over the values of each group and zero; each weight becomes the nearest level, and 0 stays 0.

    scale = (max - min) / (2^bits - 1), zero = round(-min / scale), code = round(w / scale + zero).

    Args:
        weight: (rows, columns), floating.
        bits: 1 to 8.
        group: columns in a group.

    >>> code = round_to_nearest(torch.tensor([[-1.0, 0.0, 2.0, 0.5]]), 2, 4)
    >>> code.codes, dequantize(code)
    (tensor([[0, 1, 3, 2]], dtype=torch.uint8), tensor([[-1.,  0.,  2.,  1.]]))
    """
    grouped = in_groups(weight, group)
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    scale = storable_scale((high - low) / (2**bits - 1))
    zero = (-low / scale.float()).round().clamp(0, 2**bits - 1)
    codes = nearest_codes(grouped, scale, zero, bits)
    return GroupCode(codes.flatten(1)[:, : weight.shape[1]].contiguous(), scale, zero.to(torch.uint8), group)


def half_quadratic(weight: Tensor, bits: int, group: int, steps: int = 20, norm: float = 0.7, beta: float = 10.0, kappa: float = 1.01) -> GroupCode:
    """Zero points that fit a sparse error: most weights nearly exact, and a few outliers far off.

    Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023: min over z of ‖W - Q⁻¹(Q(W))‖_p^p with p < 1, by turns
    E = shrink(W - W_r, beta) with shrink(x) = sign(x) · relu(|x| - |x|^(p-1) / beta), and z = mean(codes - (W - E) / scale).
    The scale is that of the range of the group. A row of groups keeps the zero points of the step with the smallest mean absolute error.

    Args:
        weight: (rows, columns), floating.
        bits: 1 to 8.
        group: columns in a group.
        steps, norm, beta, kappa: of the solver: its steps, p, the first beta, and the factor of beta in each step.

    >>> weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    >>> error = lambda code: float((dequantize(code) - weight).square().mean())
    >>> error(half_quadratic(weight, 3, 64)) < error(round_to_nearest(weight, 3, 64))
    True
    """
    grouped = in_groups(weight, group)
    low, high = grouped.amin(-1), grouped.amax(-1)
    scale = storable_scale((high - low) / (2**bits - 1))
    zero, factor = -low / scale.float(), scale.to(low.dtype)[..., None]
    best, least = zero, torch.full_like(zero, torch.inf)
    for _ in range(steps):
        codes = nearest_codes(grouped, scale, zero, bits).to(low.dtype)
        error = grouped - (codes - zero[..., None]) * factor
        size = error.abs().mean(-1)
        best, least = torch.where(size < least, zero, best), torch.minimum(size, least)
        shrunk = error.sign() * functional.relu(error.abs() - error.abs().pow(norm - 1).nan_to_num(posinf=0.0) / beta)
        zero, beta = (codes - (grouped - shrunk) / factor).mean(-1), beta * kappa
    best = best.half() if float(best.abs().amax()) < _FINE else best.float()
    codes = nearest_codes(grouped, scale, best, bits)
    return GroupCode(codes.flatten(1)[:, : weight.shape[1]].contiguous(), scale, best, group)


_FINE = 64
"""Zero points below it are stored in float16, whose steps are 1/32 of a level there or finer."""

METHODS: dict[str, Callable[[Tensor, int, int], GroupCode]] = {"rtn": round_to_nearest, "hqq": half_quadratic}
"""Ways to quantize a matrix (weight, bits, group) without data."""


def in_groups(weight: Tensor, group: int) -> Tensor:
    """The matrix (rows, columns) as (rows, groups, group), in float32 or float64; a shorter last group repeats its last value.

    >>> in_groups(torch.tensor([[1.0, 2.0, 3.0]]), 2)
    tensor([[[1., 2.],
             [3., 3.]]])
    """
    matrix = weight.detach() if weight.dtype == torch.float64 else weight.detach().float()
    return functional.pad(matrix[None], (0, -matrix.shape[1] % group), mode="replicate")[0].unflatten(1, (-1, group))


def nearest_codes(grouped: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest code of each weight (rows, groups, group), uint8."""
    return (grouped / scale.to(grouped.dtype)[..., None] + zero.to(grouped.dtype)[..., None]).round().clamp(0, 2**bits - 1).to(torch.uint8)


def storable_scale(scale: Tensor) -> Tensor:
    """The scales in float16, if all are normal numbers there, else in float32; a group of equal values, whose scale is zero, gets 1.

    >>> storable_scale(torch.tensor([0.5, 0.0])).dtype, storable_scale(torch.tensor([1e-9])).dtype
    (torch.float16, torch.float32)
    """
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    limits = torch.finfo(torch.float16)
    fits = scale.numel() and float(scale.min()) >= limits.tiny and float(scale.max()) <= limits.max
    return scale.half() if fits else scale.float()
