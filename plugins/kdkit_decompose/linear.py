"""Linear: convolutions that see one position, or all of the input at once, as linear layers, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from kdkit import Context, KdError, param
from kdkit_decompose.factors import copy_settings
from kdkit_decompose.forms import CONVOLUTIONS
from kdkit_decompose.layer_stage import TRANSPOSED, LayerStage, Replacement, put_modules, tell_skipped
from kdkit_decompose.speed import capture_inputs


class ToPositions(nn.Module):
    """(batch, in, positions...) to (batch, new positions..., in · kernel), the vectors that a linear layer multiplies.

    Args:
        inputs: channels.
        kernel_size: of the convolution: 1 in each dimension, or as large as the input.
        stride: of the convolution.

    >>> import torch
    >>> ToPositions(4, (1, 1), (2, 2))(torch.zeros(3, 4, 6, 6)).shape
    torch.Size([3, 3, 3, 4])
    >>> ToPositions(4, (6, 6), (1, 1))(torch.zeros(3, 4, 6, 6)).shape
    torch.Size([3, 1, 1, 144])
    """

    def __init__(self, inputs: int, kernel_size: tuple[int, ...], stride: tuple[int, ...]):
        super().__init__()
        self.inputs, self.kernel_size, self.stride = inputs, tuple(kernel_size), tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        if set(self.kernel_size) == {1}:
            return x[(..., *(slice(None, None, step) for step in self.stride))].movedim(1, -1)  # type: ignore[index]
        if tuple(x.shape[2:]) != self.kernel_size:
            raise ValueError(f"this layer was a convolution over {self.kernel_size}, all of the input, and gets {tuple(x.shape[2:])}")
        return x.flatten(1)[(slice(None), *(None for _ in self.kernel_size))]

    def extra_repr(self) -> str:
        return f"{self.inputs}, kernel_size={self.kernel_size}, stride={self.stride}"


class ToChannels(nn.Module):
    """(batch, positions..., out) to (batch, out, positions...)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(-1, 1)


class LinearConvolution(nn.Sequential):
    """A convolution as a plain linear layer, its second part, between two changes of shape."""


@dataclass
class Rewritten(Replacement):
    """A layer with the same weights in another shape."""

    layer: Any
    new: nn.Module
    ranks: tuple[int, ...] = ()

    @property
    def weights(self) -> int:
        return sum(weight.numel() for name, weight in self.new.named_parameters() if name.endswith("weight"))

    def structure(self) -> nn.Module:
        return self.new

    def made(self) -> nn.Module:
        return self.new

    def too_dear(self) -> str:
        return ""


class AsLinear(LayerStage):
    """Write convolutions of 1x1, and those with a kernel as large as their input, as linear layers, or write them back.

    The outputs stay the same. Techniques for linear layers, such as `quantize dynamic`, `quantize weights` and `peft lora`, reach them then.
    A convolution `name` becomes `name.1`, an nn.Linear, between two modules that move the channels. `--to convolution` writes those that
    this stage made back, with their values then, as some devices run convolutions only.

    Left alone, and named in the notes: kernels that slide over several positions, padded ones, and convolutions in groups.
    """

    id: ClassVar = "decompose.linear"
    known_as: ClassVar[tuple[str, ...]] = ("pointwise convolution as linear", "convolution to linear")
    works_on: ClassVar = "convolutions"
    keeps_values: ClassVar = True

    to: Literal["linear", "convolution"] = param("linear", "convolutions become linear layers, or are written back", main=True)
    guard: bool = param(False, "leave alone the layers that this machine runs slower as linear layers; layers of less than a million multiply-adds are not timed")

    def kinds(self) -> tuple[type, ...]:
        return (*CONVOLUTIONS, *TRANSPOSED)

    def obstacle(self, layer: Any) -> str:
        if found := super().obstacle(layer):
            return found
        padded = (layer.padding == "same" and max(layer.kernel_size) > 1) or (not isinstance(layer.padding, str) and any(layer.padding))
        return "its input is padded" if padded else ""

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        return super().apply(model, context) if self.to == "linear" else write_back(model, context)

    def check(self, model: nn.Module, context: Context) -> list[str]:
        if self.to == "linear":
            return list(super().check(model, context))
        return [] if any(isinstance(module, LinearConvolution) for module in model.modules()) else ["it has no convolution that decompose linear has written as linear"]

    def replacements(self, model: nn.Module, layers: Mapping[str, Any], context: Context, *, with_data: bool) -> dict[str, Replacement]:
        inputs = capture_inputs(model, layers.values(), context.example[:1])
        found: dict[str, Replacement] = {}
        for name, layer in layers.items():
            if set(layer.kernel_size) == {1} or (layer in inputs and tuple(inputs[layer].shape[2:]) == layer.kernel_size):
                found[name] = Rewritten(layer, as_linear(layer))
                context.note_rename(name, f"{name}.1")
            else:
                context.note(f"skipped {name}: its kernel slides over several positions")
        if not found:
            raise KdError("decompose linear: no convolution has a kernel of 1x1 or as large as its input", "%kd decompose svd works on all convolutions")
        return found

    def tell(self, chosen: Mapping[str, Replacement], context: Context) -> None:
        context.note(f"as linear layers: {', '.join(chosen)}")


def as_linear(layer: Any) -> LinearConvolution:
    """A convolution as a linear layer.

    >>> as_linear(nn.Conv2d(4, 8, 1))[1]
    Linear(in_features=4, out_features=8, bias=True)
    """
    linear = nn.Linear(math.prod(layer.weight.shape[1:]), layer.out_channels, bias=layer.bias is not None)
    copy_settings(layer, linear)
    linear.weight.data = layer.weight.data.flatten(1)
    return LinearConvolution(ToPositions(layer.in_channels, layer.kernel_size, layer.stride), linear, ToChannels()).train(layer.training)


def as_convolution(written: LinearConvolution) -> nn.Module:
    """The convolution that `as_linear` wrote, with the values of the linear layer.

    >>> as_convolution(as_linear(nn.Conv2d(4, 8, 1, stride=2)))
    Conv2d(4, 8, kernel_size=(1, 1), stride=(2, 2))
    """
    positions, linear, _ = written
    assert isinstance(positions, ToPositions)
    assert isinstance(linear, nn.Linear)
    kind: Any = CONVOLUTIONS[len(positions.kernel_size) - 1]
    made = kind(positions.inputs, linear.out_features, positions.kernel_size, positions.stride, bias=linear.bias is not None)
    copy_settings(linear, made)
    made.weight.data = linear.weight.data.reshape(made.weight.shape)
    return made


def write_back(model: nn.Module, context: Context) -> nn.Module:
    """The model with the convolutions that `as_linear` wrote; a note names those whose linear layer is another one now."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, LinearConvolution)}
    changed = {name: f"its linear layer is a {type(module[1]).__name__} now" for name, module in found.items() if type(module[1]) is not nn.Linear}
    tell_skipped(changed, context)
    kept = {name: module for name, module in found.items() if name not in changed}
    if not kept:
        raise KdError("decompose linear: nothing to write back", *(f"{name}: {reason}" for name, reason in changed.items()))
    for name in kept:
        context.note_rename(f"{name}.1", name)
    context.note(f"as convolutions again: {', '.join(kept)}")
    return put_modules(model, {module: as_convolution(module) for module in kept.values()})
