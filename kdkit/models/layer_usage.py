"""Layer usage: what a model does with its layers during one batch. A stage checks it before it replaces layers."""

from __future__ import annotations

import contextlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from kdkit.data import Batch
from kdkit.models.evaluation import evaluating


@dataclass
class Usage:
    """What a model does with one layer.

    Attributes:
        called: the layer's forward ran.
        read_by: classes that read the layer's `weight` directly instead of calling it: `nn.MultiheadAttention` does so with
            `out_proj`, `nn.TransformerEncoderLayer` with its linear layers in eval mode. A replacement without a weight
            breaks these classes, and they ignore a wrapper.
        gives_output: the layer's output is (part of) the model's output, as for a head.
        tied_to: other modules that hold the same weight.
        places: every name of the layer; several if the module is shared.
    """

    called: bool = False
    read_by: set[str] = field(default_factory=set)
    gives_output: bool = False
    tied_to: tuple[str, ...] = ()
    places: tuple[str, ...] = ()


def linear_kinds() -> tuple[Any, ...]:
    """Classes of linear layers: nn.Linear, and HF's Conv1D if its module is loaded (otherwise no model can contain one).

    Conv1D keeps its weight as (in, out).
    """
    transformers = sys.modules.get("transformers.pytorch_utils")
    return (nn.Linear, transformers.Conv1D) if transformers else (nn.Linear,)


def trace_layer_usage(model: nn.Module, batch: Batch, layers: Mapping[str, nn.Module]) -> dict[str, Usage]:
    """Run `batch` through `model` in eval mode, and record what it does with each of `layers` (name -> module of the model).

    >>> net = nn.Sequential(nn.Linear(4, 4), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Linear(4, 2))
    >>> seen = trace_layer_usage(net, Batch((torch.zeros(1, 3, 4),)), {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Linear)})
    >>> for name, use in seen.items(): print(name, use.called, *use.read_by, use.gives_output)
    0 True False
    1.self_attn.out_proj False TransformerEncoderLayer False
    1.linear1 False TransformerEncoderLayer False
    1.linear2 False TransformerEncoderLayer False
    2 True True
    """
    seen = {name: Usage(places=_places(model, layer), tied_to=_tied(model, layer)) for name, layer in layers.items()}
    outputs: dict[str, list[torch.Tensor]] = defaultdict(list)
    with evaluating(model), contextlib.ExitStack() as watches:
        for name, layer in layers.items():
            watches.enter_context(_watched(layer, seen[name], outputs[name]))
        given = batch.to(_device(model)).call(model)
    storages = {_storage(tensor) for tensor in _tensors(given)}
    for name, tensors in outputs.items():
        seen[name].gives_output = any(_storage(tensor) in storages for tensor in tensors)
    return seen


@contextlib.contextmanager
def _watched(layer: nn.Module, use: Usage, outputs: list[torch.Tensor]) -> Iterator[None]:
    """Replace the layer's class by a subclass that records calls and reads of its weight."""
    kind, inside = type(layer), False

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        use.called, inside = True, True
        try:
            output = kind.forward(self, *args, **kwargs)
        finally:
            inside = False
        outputs.extend(_tensors(output))
        return output

    def read(self: nn.Module, name: str) -> Any:
        if name == "weight" and not inside:
            reader = sys._getframe(1).f_locals.get("self")
            use.read_by.add(type(reader).__name__ if isinstance(reader, nn.Module) else "a function")
        return kind.__getattr__(self, name)

    layer.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__getattr__": read})
    try:
        yield
    finally:
        layer.__class__ = kind


def _places(model: nn.Module, layer: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, module in model.named_modules(remove_duplicate=False) if module is layer)


def _tied(model: nn.Module, layer: nn.Module) -> tuple[str, ...]:
    weight = layer._parameters.get("weight")
    others = ((name, module) for name, module in model.named_modules() if module is not layer)
    return tuple(name for name, module in others if weight is not None and any(item is weight for item in module._parameters.values()))


def _device(model: nn.Module) -> torch.device:
    return next((weight.device for weight in model.parameters()), torch.device("cpu"))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
