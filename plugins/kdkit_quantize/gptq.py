"""GPTQ: weights are rounded one column after another, and the columns to come make up for the error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022 (arXiv:2210.17323).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdkit_quantize.group_quantization import GroupCode, dequantize, round_to_nearest

DAMPING = 0.01
"""Share of the mean of the moment's diagonal that is added to it."""


def round_with_compensation(weight: Tensor, bits: int, group: int, moment: Tensor) -> GroupCode:
    """Round a matrix so that its product with inputs of this second moment changes least.

    For each column j, with U the upper Cholesky factor of the inverse moment H⁻¹: e = (w_j - q_j) / U_jj, and then w_k -= e · U_jk for all k > j.
    The grid of a group is that of `round_to_nearest` for its columns as they are when the first of them is rounded.

    Args:
        weight: (rows, columns), floating.
        bits: 1 to 8.
        group: columns in a group.
        moment: (columns, columns) of the inputs; columns that are always zero are rounded alone.

    >>> random = torch.Generator().manual_seed(0)
    >>> x, weight = torch.randn(400, 8, generator=random) @ torch.randn(8, 16, generator=random), torch.randn(4, 16, generator=random)
    >>> error = lambda code: float((x @ (dequantize(code) - weight).T).square().mean())
    >>> error(round_with_compensation(weight, 3, 16, x.T @ x / 400)) < 0.6 * error(round_to_nearest(weight, 3, 16))
    True
    """
    work, factor = weight.detach().float().clone(), _factor(moment)
    parts = []
    for start in range(0, work.shape[1], group):
        block = work[:, start : start + group]
        inner = factor[start : start + group, start : start + group]
        grid = round_to_nearest(block, bits, block.shape[1])
        codes, errors = torch.empty_like(grid.codes), torch.zeros_like(block)
        for column in range(block.shape[1]):
            code = (block[:, column, None] / grid.scale.float() + grid.zero).round().clamp(0, 2**bits - 1).to(torch.uint8)
            exact = dequantize(GroupCode(code, grid.scale, grid.zero, 1))
            codes[:, column] = code[:, 0]
            errors[:, column] = (block[:, column] - exact[:, 0]) / inner[column, column]
            block[:, column + 1 :] -= errors[:, column, None] * inner[column, column + 1 :]
        work[:, start + group :] -= errors @ factor[start : start + group, start + group :]
        parts.append(grid._replace(codes=codes))
    dtype = torch.float32 if any(part.scale.dtype == torch.float32 for part in parts) else torch.float16
    joined = [torch.cat([getattr(part, name) for part in parts], 1) for name in ("codes", "scale", "zero")]
    return GroupCode(joined[0], joined[1].to(dtype), joined[2], group)


def _factor(moment: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped moment; the damping grows until there is one."""
    moment = moment.double().clone()
    diagonal = moment.diagonal()
    diagonal[diagonal == 0] = 1
    damping = DAMPING * diagonal.mean()
    for _ in range(8):
        diagonal += damping
        lower, failed = torch.linalg.cholesky_ex(moment)
        if not failed:
            return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True).float()
        damping = damping * 10
    return torch.eye(len(moment))
