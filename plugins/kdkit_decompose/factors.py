"""Factors: a weight as the product of two thin ones, by truncated singular value decomposition.

Eckart, Young, "The approximation of one matrix by another of lower rank", 1936: no product of that rank comes nearer.
Nearest in what the layer gives out, not in its weight: Wang et al., "SVD-LLM", 2024 (arXiv:2403.07378).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from kdkit import Batch
from kdkit.models import evaluating

Linear = Any
"""An nn.Linear, an HF Conv1D, which is one with its weight transposed, or a 1x1 convolution, which is one at each position."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_pointwise(layer: nn.Module) -> bool:
    """Whether it is a convolution with a kernel of one position, in one group.

    >>> is_pointwise(nn.Conv2d(4, 8, 1, stride=2)), is_pointwise(nn.Conv2d(4, 8, (1, 3)))
    (True, False)
    """
    return isinstance(layer, CONVOLUTIONS) and set(layer.kernel_size) == {1} and layer.groups == 1


def matrix(layer: Linear) -> Tensor:
    """The layer's weight as (out, in) float32."""
    weight = layer.weight.detach().float()
    if isinstance(layer, CONVOLUTIONS):
        return weight.flatten(1)
    return weight if isinstance(layer, nn.Linear) else weight.T


def shape_of(layer: Linear) -> tuple[int, int]:
    """(out, in)."""
    first, second = layer.weight.shape[:2]
    return (first, second) if isinstance(layer, (nn.Linear, *CONVOLUTIONS)) else (second, first)


class Moment:
    """The second moment C = E[x xᵀ] of a layer's inputs, summed up over batches.

    For the errors E = W - W' of a weight, ‖E C^½‖² is the mean of ‖E x‖², the error of what the layer gives out.

    >>> moment = Moment(2)
    >>> moment.add(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    >>> root, inverse = moment.roots
    >>> root @ root
    tensor([[2.0050, 0.0000],
            [0.0000, 8.0050]])
    """

    DAMPING = 1e-3
    """Share of the mean eigenvalue added to all: directions that the batches did not show still count a little."""

    def __init__(self, width: int, device: torch.device | str = "cpu"):
        self.sum = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.rows = 0

    def add(self, inputs: Tensor) -> None:
        """Count in more inputs (..., in)."""
        rows = inputs.detach().flatten(0, -2).float()
        self.sum += rows.T @ rows
        self.rows += len(rows)

    @cached_property
    def roots(self) -> tuple[Tensor, Tensor]:
        """C^½ and C^-½, each (in, in) float32; no more can be added then."""
        values, vectors = torch.linalg.eigh(self.sum / max(self.rows, 1))
        spread = (values.clamp(min=0) + self.DAMPING * values.mean()).clamp(min=1e-12).sqrt()
        return (vectors * spread @ vectors.T).float(), (vectors / spread @ vectors.T).float()


def watch_inputs(model: nn.Module, layers: Mapping[str, Linear], batches: Iterable[Batch]) -> dict[str, Moment]:
    """The moments of the inputs of `layers`, by name; padding (attention_mask 0) does not count. Batches stream once."""
    moments = {name: Moment(matrix(layer).shape[1], layer.weight.device) for name, layer in layers.items()}
    mask: Tensor | None = None

    def watch(moment: Moment) -> Callable:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs = rows_of(module, args[0])
            moment.add(inputs[mask.bool()] if mask is not None and inputs.shape[:-1] == mask.shape else inputs)

        return hook

    with evaluating(model), _hooks(layers[name].register_forward_pre_hook(watch(moments[name])) for name in layers):
        for batch in batches:
            batch = batch.to(next(model.parameters()).device)
            mask = batch.kwargs.get("attention_mask")
            batch.call(model)
    return moments


def rows_of(layer: nn.Module, inputs: Tensor) -> Tensor:
    """The inputs as (..., in): those of a convolution are (batch, in, positions...), of which it reads each `stride`-th.

    >>> rows_of(nn.Conv2d(4, 8, 1, stride=2), torch.zeros(3, 4, 6, 6)).shape
    torch.Size([3, 3, 3, 4])
    """
    if not isinstance(layer, CONVOLUTIONS):
        return inputs
    return inputs.movedim(-1 - len(layer.stride), -1)[(..., *(slice(None, None, step) for step in layer.stride), slice(None))]  # type: ignore[index]


@contextlib.contextmanager
def _hooks(handles: Iterable) -> Iterator[None]:
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def singular_values(layer: Linear, moment: Moment | None) -> Tensor:
    """Of the layer's weight, or of W C^½, descending."""
    weight = matrix(layer)
    return torch.linalg.svdvals(weight if moment is None else weight @ moment.roots[0])


def factorize(weight: Tensor, rank: int, moment: Moment | None = None) -> tuple[Tensor, Tensor]:
    """W ≈ up · down: down is (rank, in), up is (out, rank); the singular values are shared out between them by their roots.

    With a moment W' = [W C^½]_r C^-½, where [.]_r keeps the largest `rank` singular values.

    >>> down, up = factorize(torch.diag(torch.tensor([3.0, 1.0])), rank=1)
    >>> up @ down
    tensor([[3., 0.],
            [0., 0.]])
    """
    left, values, right = torch.linalg.svd(weight if moment is None else weight @ moment.roots[0], full_matrices=False)
    scale = values[:rank].sqrt()
    down = scale[:, None] * right[:rank]
    return down if moment is None else down @ moment.roots[1], left[:, :rank] * scale


def product(layer: Linear, rank: int) -> nn.Sequential:
    """Two layers of that rank for one, without values yet; dtype, device, flags, mode and bias are the layer's."""
    weight, bias = layer.weight, layer.bias
    outputs, inputs = shape_of(layer)
    place: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    down: Any
    up: Any
    if isinstance(layer, CONVOLUTIONS):
        kind = next(each for each in CONVOLUTIONS if isinstance(layer, each))
        reads: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "padding_mode": layer.padding_mode}
        down, up = kind(inputs, rank, 1, bias=False, **reads, **place), kind(rank, outputs, 1, bias=bias is not None, **place)
    else:
        down, up = nn.Linear(inputs, rank, bias=False, **place), nn.Linear(rank, outputs, bias=bias is not None, **place)
    if bias is not None:
        up.bias = bias
    for thin in (down, up):
        thin.weight.requires_grad_(weight.requires_grad)
    return nn.Sequential(down, up).train(layer.training)


def decompose(layer: Linear, rank: int, moment: Moment | None = None) -> nn.Sequential:
    """The layer as a product of rank `rank`."""
    made = product(layer, rank)
    for name, factor in zip(("0.weight", "1.weight"), factorize(matrix(layer), rank, moment), strict=True):
        weight = made.get_parameter(name)
        weight.data.copy_(factor.reshape(weight.shape))
    return made
