"""Derived inputs: a batch for a model without data, from its first layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch
from kdkit.models.evaluation import device_of, evaluating_without_side_effects

_ITEMS, _LENGTH, _SIDE = 2, 32, 32
"""Items, length of sequences, and width of images in a derived batch."""


def derive_inputs(model: nn.Module) -> Batch | None:
    """Random inputs of a shape that the model accepts, from its `dummy_inputs` or its first layer; None if none is found.

    >>> derive_inputs(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())).args[0].shape
    torch.Size([2, 3, 32, 32])
    """
    return next((batch for batch in _candidates(model) if _accepts(model, batch)), None)


def _candidates(model: nn.Module) -> Iterator[Batch]:
    given = getattr(model, "dummy_inputs", None)
    if isinstance(given, dict):
        yield Batch(kwargs=given)
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        for kind, shapes in _SHAPES.items():
            if isinstance(layer, kind):
                yield from (Batch((make(layer, generator),)) for make in shapes)
                return


def _accepts(model: nn.Module, batch: Batch) -> bool:
    try:
        with evaluating_without_side_effects(model):
            batch.to(device_of(model)).call(model)
    except Exception:  # any model may refuse a guess in any way
        return False
    return True


def _floats(*shape: str | int) -> Callable[[Any, torch.Generator], Tensor]:
    def make(layer: Any, generator: torch.Generator) -> Tensor:
        dtype = next((weight.dtype for weight in layer.parameters()), torch.float32)
        return torch.randn([_ITEMS, *(getattr(layer, size) if isinstance(size, str) else size for size in shape)], generator=generator).to(dtype)

    return make


def _ids(layer: Any, generator: torch.Generator) -> Tensor:
    return torch.randint(layer.num_embeddings, (_ITEMS, min(_LENGTH, 8)), generator=generator)


_SHAPES: dict[Any, tuple[Callable[[Any, torch.Generator], Tensor], ...]] = {
    nn.Embedding: (_ids,),
    nn.Linear: (_floats("in_features"), _floats(_LENGTH, "in_features")),
    nn.Conv1d: (_floats("in_channels", _LENGTH), _floats("in_channels", 16000)),
    nn.Conv2d: (_floats("in_channels", _SIDE, _SIDE), _floats("in_channels", 28, 28), _floats("in_channels", 224, 224)),
    nn.Conv3d: (_floats("in_channels", 8, _SIDE, _SIDE),),
    nn.RNNBase: (_floats(_LENGTH, "input_size"),),
    nn.RNNCellBase: (_floats("input_size"), _floats(_LENGTH, "input_size")),
}
