"""Where a model's forward computes the tensors of its graph: found by their values.

A forward is a sequence of calls of torch's functions. The tensor of an ONNX graph is the output of the call that gives the same numbers, whatever the
call's name: the graph's convolution, with its BatchNorm folded in, is the call of batch_norm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from kdkit import Batch
from kdkit.models import evaluating

CLOSE = 1e-4
"""Difference of values that are the same, against the largest of them."""


@dataclass(frozen=True)
class Call:
    """One call of a function of torch that returns a float tensor.

    Attributes:
        function: its name.
        output: a copy of what it returned.
    """

    function: str
    output: Tensor


class _Recorder(TorchFunctionMode):
    """Keeps the calls, and which BatchNorm gets the output of which layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.norms: dict[str, nn.Module] = {}
        self.layers = {id(layer._parameters["weight"]): name for name, layer in model.named_modules() if isinstance(layer._parameters.get("weight"), Tensor)}
        self.batch_norms = {id(layer.running_mean): layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)}
        self.makers: dict[int, tuple[Tensor, str]] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if is_counted(made):
            self.calls.append(Call(name_of(function), made.detach().clone()))
            if len(args) > 1 and id(args[1]) in self.layers and made.dim() > 1:
                self.makers[id(made)] = made, self.layers[id(args[1])]
            if function is functional.batch_norm and id(args[0]) in self.makers and id(args[1]) in self.batch_norms:
                self.norms[self.makers[id(args[0])][1]] = self.batch_norms[id(args[1])]
        return made


def is_counted(made: Any) -> bool:
    """Whether a call returned a float tensor: the others are not counted."""
    return isinstance(made, Tensor) and made.is_floating_point() and made.dim() > 0


def name_of(function: Any) -> str:
    """A name for a function of torch, the same in every run."""
    return str(getattr(function, "__name__", function))


def record_calls(model: nn.Module, batch: Batch) -> tuple[list[Call], dict[str, nn.Module]]:
    """The calls of one forward in eval mode, and the BatchNorm that follows each layer at once, by the layer's name.

    >>> net = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.ReLU())
    >>> calls, norms = record_calls(net, Batch((torch.zeros(2, 2, 4),)))
    >>> [call.function for call in calls], norms
    (['conv1d', 'batch_norm', 'relu'], {'0': BatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)})
    """
    recorder = _Recorder(model)
    with evaluating(model), torch.no_grad(), without_fused_attention(), recorder:
        batch.call(model)
    return recorder.calls, recorder.norms


@contextlib.contextmanager
def without_fused_attention() -> Iterator[None]:
    """A block in which torch's attention layers call the same functions in eval mode as in training."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def find_calls(calls: list[Call], tensors: Mapping[str, NDArray[np.floating[Any]]]) -> dict[str, int]:
    """The number of the call that computes each tensor, by the tensor's name; tensors that no call computes are left out.

    >>> find_calls([Call("relu", torch.tensor([0.0, 2.0]))], {"y": np.array([0.0, 2.0]), "z": np.array([1.0, 1.0])})
    {'y': 0}
    """
    outputs = [call.output.float().cpu().numpy() for call in calls]
    found = {name: next((number for number, output in enumerate(outputs) if _same(values, output)), None) for name, values in tensors.items()}
    return {name: number for name, number in found.items() if number is not None}


def _same(one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]) -> bool:
    return one.shape == other.shape and bool(np.abs(one - other).max(initial=0) <= CLOSE * max(1e-12, np.abs(one).max(initial=0)))
