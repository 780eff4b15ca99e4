"""SparseGPT: weights go one column after another, and the columns that follow make up for what went.

Frantar, Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", 2023 (arXiv:2301.00774).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdkit_prune.sparsity_patterns import SemiStructured, keep_best

BLOCK = 128
"""Columns that choose their mask together."""


def reconstruct(weight: Tensor, moment: Tensor, ratio: float, pattern: SemiStructured | None = None, damping: float = 0.01, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """The pruned weight W' with the least error ‖(W - W')·X‖² that the method finds, and the mask of what it keeps.

    Args:
        weight: (outputs, inputs) float32.
        moment: (inputs, inputs), the mean of x xᵀ, up to a factor.
        ratio: the share that goes, in each block of columns.
        pattern: instead of `ratio`, N:M.
        damping: share of the mean of the moment's diagonal that is added to it.
        block: columns that choose their mask together; with N:M a multiple of M.

    >>> reconstruct(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.5], [0.5, 1.0]]), 0.5, damping=0.0)
    (tensor([[0.0000, 2.5000]]), tensor([[False,  True]]))
    """
    work, inverse = _prepare(weight, moment, damping)
    keep = torch.ones_like(work, dtype=torch.bool)
    for start in range(0, work.shape[1], block):
        columns = slice(start, min(start + block, work.shape[1]))
        errors = _reconstruct_block(work[:, columns], keep[:, columns], inverse[columns, columns], ratio, pattern)
        work[:, columns.stop :] -= errors @ inverse[columns, columns.stop :]
    return work.masked_fill(~keep, 0), keep


def _prepare(weight: Tensor, moment: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """A copy of the weight without inputs that are always zero, and the upper Cholesky factor of the inverse moment."""
    work, moment = weight.clone(), moment.clone()
    diagonal = moment.diagonal()
    unused = diagonal == 0
    diagonal[unused] = 1
    work[:, unused] = 0
    diagonal += damping * diagonal.mean()
    return work, torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moment)), upper=True)


def _reconstruct_block(work: Tensor, keep: Tensor, inverse: Tensor, ratio: float, pattern: SemiStructured | None) -> Tensor:
    """Prune some columns in place; returns the errors that later columns make up for, (outputs, columns)."""
    spread = inverse.diagonal()
    if pattern is None:
        keep.copy_(keep_best((work / spread).pow(2).reshape(1, -1), ratio).reshape(work.shape))
    errors = torch.zeros_like(work)
    for column in range(work.shape[1]):
        if pattern is not None and column % pattern.m == 0:
            group = slice(column, column + pattern.m)
            keep[:, group] = pattern.keep((work[:, group] / spread[group]).pow(2))
        values = work[:, column]
        errors[:, column] = values.masked_fill(keep[:, column], 0) / spread[column]
        work[:, column:] -= errors[:, column : column + 1] * inverse[column, column:]
    return errors
