"""Factors: a weight as the product of two thin ones, by truncated singular value decomposition.

Eckart, Young, "The approximation of one matrix by another of lower rank", 1936: no product of that rank is nearer.
Nearest in the layer's output, not in its weight: Wang et al., "SVD-LLM", 2024 (arXiv:2403.07378).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdkit_decompose.forms import Form
from kdkit_decompose.moments import Observation


def singular_values(layer: nn.Module, form: Form, seen: Observation | None = None) -> Tensor:
    """Of the layer's matrix W, or of W C^½ for the second moment C of its inputs; (rank,), descending."""
    matrix = form.matrix(layer)
    return torch.linalg.svdvals(matrix) if seen is None else seen.principal_directions(matrix)[1]


def factorize(matrix: Tensor, rank: int, seen: Observation | None = None) -> tuple[Tensor, Tensor]:
    """W ≈ up · down: down is (rank, columns), up is (rows, rank); a row of `down` is as long as its column of `up`.

    W' = U Uᵀ W for the first `rank` left singular vectors U of W, or of W C^½ for the second moment C of the inputs.

    >>> down, up = factorize(torch.diag(torch.tensor([3.0, 1.0])), rank=1)
    >>> up @ down
    tensor([[3., 0.],
            [0., 0.]])
    """
    left = torch.linalg.svd(matrix, full_matrices=False)[0] if seen is None else seen.principal_directions(matrix)[0]
    directions = left[:, :rank]
    down = directions.T @ matrix
    scale = down.norm(dim=1).sqrt().clamp(min=1e-20)
    return down / scale[:, None], directions * scale


def product(layer: Any, form: Form, rank: int) -> nn.Sequential:
    """Two layers of that rank for one, without values yet; dtype, device, flags, mode and bias are the layer's."""
    down, up = form.layers(layer, rank)
    return finish_layers(layer, down, up)


def finish_layers(layer: Any, *parts: nn.Module) -> nn.Sequential:
    """The parts in order, the last of which has a bias if the layer has one; dtype, device, flags, mode and bias are the layer's."""
    copy_settings(layer, *parts)
    return nn.Sequential(*parts).train(layer.training)


def copy_settings(layer: Any, *parts: nn.Module) -> None:
    """Give the parts a layer's dtype, device, flags and mode, and the last one its bias."""
    for part in parts:
        part.to(device=layer.weight.device, dtype=layer.weight.dtype).train(layer.training)
        part.get_parameter("weight").requires_grad_(layer.weight.requires_grad)
    if layer.bias is not None:
        parts[-1].bias = layer.bias


def decompose(layer: Any, form: Form, rank: int, seen: Observation | None = None) -> nn.Sequential:
    """The layer as a product of rank `rank`.

    >>> from kdkit_decompose.forms import SPATIAL
    >>> decompose(nn.Conv2d(4, 8, 3, padding=1), SPATIAL, rank=6)
    Sequential(
      (0): Conv2d(4, 6, kernel_size=(3, 1), stride=(1, 1), padding=(1, 0), bias=False)
      (1): Conv2d(6, 8, kernel_size=(1, 3), stride=(1, 1), padding=(0, 1))
    )
    """
    made = product(layer, form, rank)
    for thin, weight in zip(made, form.weights(layer, *factorize(form.matrix(layer), rank, seen)), strict=True):
        thin.get_parameter("weight").data.copy_(weight)
    return made
