"""Second moments of the inputs of layers: which columns of a weight matrix occur together, and how large they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from kdkit import Batch
from kdkit.models import device_of, evaluating, linear_kinds


def has_input_columns(layer: nn.Module) -> bool:
    """Whether each output of a layer is a product of its input's columns with a row of the weight: linear layers, convolutions with one group.

    >>> has_input_columns(nn.Linear(2, 2)), has_input_columns(nn.Conv2d(4, 4, 3, groups=4)), has_input_columns(nn.Embedding(2, 2))
    (True, False, False)
    """
    return isinstance(layer, linear_kinds()) or (isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.groups == 1)


def input_columns(layer: Any, x: Tensor) -> Tensor:
    """The inputs of a layer as rows that its weight matrix is multiplied with: (positions, columns) float32.

    >>> import torch
    >>> input_columns(nn.Conv2d(2, 4, 3), torch.zeros(1, 2, 5, 5)).shape
    torch.Size([9, 18])
    """
    x = x.detach().float()
    if isinstance(layer, linear_kinds()):
        return x.reshape(-1, x.shape[-1])
    flat = isinstance(layer, nn.Conv1d)
    padded = functional.pad(x, layer._reversed_padding_repeated_twice, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    pair = [(1, *each) if flat else tuple(each) for each in (layer.kernel_size, layer.dilation, layer.stride)]
    patches = functional.unfold(padded[..., None, :] if flat else padded, kernel_size=pair[0], dilation=pair[1], stride=pair[2])
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def input_moments(model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """The second moment XᵀX / positions (columns, columns) of each layer's inputs X, float32; a layer that no batch reaches is left out.

    Args:
        layers: name -> layer of the model, each with `has_input_columns`.
        batches: to run the model on, in eval mode.
    """
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def watch(name: str, layer: nn.Module) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = input_columns(layer, inputs[0])
            sums[name] = sums[name] + rows.T @ rows if name in sums else rows.T @ rows
            counts[name] += len(rows)

        return layer.register_forward_pre_hook(hook)

    handles = [watch(name, layer) for name, layer in layers.items()]
    try:
        with evaluating(model):
            for batch in batches:
                Batch(batch.args, batch.kwargs).to(device_of(model)).call(model)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / counts[name] for name, total in sums.items() if counts[name]}
