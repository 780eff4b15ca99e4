"""A model that simulates its 8-bit form: activations are rounded behind the calls that compute them, weights by parametrizations."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from kdkit import KdError
from kdkit_quantize.simulation.placement import is_counted, name_of, without_fused_attention
from kdkit_quantize.simulation.quantizers import ActivationQuantizer, WeightQuantizer

ATTRIBUTE = "kdkit_simulation"
"""The model's attribute that holds its simulation while it trains; no submodule, which an nn.Sequential would call."""


@dataclass
class Simulation:
    """Which activations of a model are rounded, and how.

    Attributes:
        quantizers: of activations, by key.
        tensors: the key of each tensor of the graph that is simulated; tensors that share a scale share a key.
        inputs: input of the model -> key.
        calls: number of a call -> the function's name and the key.
        parameters: names of forward's positional parameters.
    """

    quantizers: nn.ModuleDict
    tensors: Mapping[str, str]
    inputs: Mapping[str, str]
    calls: Mapping[int, tuple[str, str]]
    parameters: tuple[str, ...]
    weights: dict[str, WeightQuantizer] = field(default_factory=dict)

    def quantize(self, key: str, x: Tensor, training: bool) -> Tensor:
        """Round an activation; in training its range is observed first."""
        quantizer = self.quantizers[key]
        assert isinstance(quantizer, ActivationQuantizer)
        if training:
            quantizer.observe(x)
        return quantizer(x)

    def ends(self) -> dict[str, tuple[float, float]]:
        """The range of each simulated tensor of the graph."""
        return {tensor: self.quantizers[key].ends for tensor, key in self.tensors.items()}  # type: ignore[misc]


class _Rounding(TorchFunctionMode):
    """Counts the calls of a forward, and rounds the outputs of some."""

    def __init__(self, simulation: Simulation, training: bool) -> None:
        super().__init__()
        self.simulation, self.training, self.number = simulation, training, 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if not is_counted(made):
            return made
        wanted, self.number = self.simulation.calls.get(self.number), self.number + 1
        if wanted is None:
            return made
        if wanted[0] != name_of(function):
            raise KdError(
                f"quantize qat: forward calls {name_of(function)} in training where it calls {wanted[0]} in evaluation, so activations can't be placed",
                "a forward whose steps depend on self.training or on the data can be quantized with %kd quantize static",
            )
        return self.simulation.quantize(wanted[1], made, self.training)


def attach(model: nn.Module, simulation: Simulation, bits: int, learned: bool, norms: Mapping[str, nn.Module | None]) -> None:
    """Let a model simulate, in place, until `detach`.

    Args:
        simulation: of its activations; its `weights` are filled here.
        bits: of the weights of the layers that `norms` names.
        learned: whether scales of weights are trained.
        norms: layer -> the BatchNorm that is folded into it, or None.
    """
    for name, norm in norms.items():
        layer: Any = model.get_submodule(name)
        quantizer = simulation.weights[name] = WeightQuantizer(layer.weight.detach(), bits, norm, learned)
        parametrize.register_parametrization(layer, "weight", quantizer, unsafe=True)
    model.__dict__[ATTRIBUTE] = simulation
    plain = type(model)

    @functools.wraps(plain.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        own: Simulation = self.__dict__[ATTRIBUTE]
        given = [own.quantize(own.inputs[name], x, self.training) if name in own.inputs else x for name, x in zip(own.parameters, args, strict=False)]
        named = {name: own.quantize(own.inputs[name], x, self.training) if name in own.inputs else x for name, x in kwargs.items()}
        with without_fused_attention(), _Rounding(own, self.training):
            return plain.forward(self, *given, *args[len(given) :], **named)

    model.__class__ = type(plain.__name__, (plain,), {"forward": forward, "__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__})


def detach(model: nn.Module) -> tuple[Simulation, dict[str, Tensor]]:
    """Undo `attach`: weights become the numbers that their integers stand for.

    Returns:
        The simulation, and the scale of each channel of each layer that was simulated, (out,).
    """
    simulation: Simulation = model.__dict__.pop(ATTRIBUTE)
    model.__class__ = type(model).__bases__[0]
    scales = {}
    for name in simulation.weights:
        layer: Any = model.get_submodule(name)
        quantizer, original = layer.parametrizations.weight[0], layer.parametrizations.weight.original.detach()
        scales[name] = quantizer.scale.detach().clone()
        rounded = quantizer.codes(original) * scales[name].reshape(-1, *[1] * (original.dim() - 1)) / quantizer.folding(original)
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        layer.weight.data.copy_(rounded)
    return simulation, scales
