"""Sparsity patterns: which weights of a matrix may go one by one, in groups of M, or in blocks.

All scores and masks here are matrices of (outputs, inputs): the higher a score, the more a weight is worth.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Scope = Literal["row", "layer", "global"]


@dataclass(frozen=True)
class SemiStructured:
    """Of every `m` consecutive inputs, `n` weights stay, in each row; 2:4 is what sparse tensor cores run.

    Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021 (arXiv:2104.08378).

    >>> SemiStructured(1, 2).keep(torch.tensor([[3.0, 1.0, 2.0, 5.0]]))
    tensor([[ True, False, False,  True]])
    """

    n: int
    m: int

    def obstacle(self, rows: int, inputs: int) -> str:
        """Why a matrix can't have the pattern; empty if it can."""
        return f"its {inputs} inputs are no multiple of {self.m}" if inputs % self.m else ""

    def keep(self, scores: Tensor) -> Tensor:
        """(outputs, inputs) bool: the `n` best of each group."""
        groups = scores.reshape(scores.shape[0], -1, self.m)
        best = groups.topk(self.n, dim=-1).indices
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, True).reshape(scores.shape)


@dataclass(frozen=True)
class Blocks:
    """Weights go in whole blocks of `rows` outputs and `columns` inputs, which sparse kernels of CPUs run faster than single weights.

    >>> Blocks(1, 2).pool(torch.tensor([[1.0, 2.0, 5.0, 5.0]]))
    tensor([[1.5000, 5.0000]])
    """

    rows: int = 1
    columns: int = 1

    def obstacle(self, rows: int, inputs: int) -> str:
        """Why a matrix can't have the pattern; empty if it can."""
        fits = rows % self.rows == 0 and inputs % self.columns == 0
        return "" if fits else f"its {rows} outputs and {inputs} inputs can't be divided into blocks of {self.rows}x{self.columns}"

    def pool(self, scores: Tensor) -> Tensor:
        """The mean score of each block."""
        return scores.reshape(scores.shape[0] // self.rows, self.rows, -1, self.columns).mean((1, 3))

    def spread(self, kept: Tensor) -> Tensor:
        """The mask of the weights, from that of the blocks."""
        return kept.repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 1)


Pattern = SemiStructured | Blocks


def parse_pattern(text: str) -> Pattern:
    """A pattern as an option writes it.

    Raises:
        ValueError: it is none.

    >>> parse_pattern("2:4"), parse_pattern("16x8"), parse_pattern("single")
    (SemiStructured(n=2, m=4), Blocks(rows=16, columns=8), Blocks(rows=1, columns=1))
    """
    if text == "single":
        return Blocks()
    if (found := re.fullmatch(r"(\d+):(\d+)", text)) and 0 < int(found[1]) < int(found[2]):
        return SemiStructured(int(found[1]), int(found[2]))
    if (found := re.fullmatch(r"(\d+)x(\d+)", text)) and int(found[1]) and int(found[2]):
        return Blocks(int(found[1]), int(found[2]))
    raise ValueError("a pattern is single, N:M with N below M (2:4 keeps two of four), or ROWSxCOLUMNS of a block (16x16)")


def choose(scores: Sequence[Tensor], ratio: float, scope: Scope, pattern: Pattern) -> list[Tensor]:
    """For each matrix of scores the weights to keep, (outputs, inputs) bool.

    Args:
        ratio: the share that goes, rounded down, of each row, of each layer, or of all layers together; N:M has its own.

    >>> choose([torch.tensor([[1.0, 4.0], [2.0, 3.0]])], 0.5, "layer", Blocks())
    [tensor([[False,  True],
            [False,  True]])]
    >>> choose([torch.tensor([[1.0, 4.0], [2.0, 3.0]])], 0.5, "row", Blocks())
    [tensor([[False,  True],
            [False,  True]])]
    """
    if isinstance(pattern, SemiStructured):
        return [pattern.keep(score) for score in scores]
    pooled = [pattern.pool(score) for score in scores]
    return [pattern.spread(kept) for kept in _SCOPES[scope](pooled, ratio)]


def keep_best(scores: Tensor, ratio: float) -> Tensor:
    """All but the lowest of each row of scores: exactly ⌊ratio · columns⌋ go. (rows, columns) -> (rows, columns) bool."""
    lowest = scores.topk(int(scores.shape[1] * ratio + 1e-9), dim=1, largest=False).indices
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, False)


def _in_each_row(scores: Sequence[Tensor], ratio: float) -> list[Tensor]:
    return [keep_best(score, ratio) for score in scores]


def _in_each_layer(scores: Sequence[Tensor], ratio: float) -> list[Tensor]:
    return [keep_best(score.reshape(1, -1), ratio).reshape(score.shape) for score in scores]


def _together(scores: Sequence[Tensor], ratio: float) -> list[Tensor]:
    kept = keep_best(torch.cat([score.flatten().float().cpu() for score in scores])[None], ratio)[0]
    parts = kept.split([score.numel() for score in scores])
    return [part.reshape(score.shape).to(score.device) for part, score in zip(parts, scores, strict=True)]


_SCOPES: dict[str, Callable[[Sequence[Tensor], float], list[Tensor]]] = {"row": _in_each_row, "layer": _in_each_layer, "global": _together}
