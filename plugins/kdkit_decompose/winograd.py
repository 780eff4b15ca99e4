"""Winograd: a convolution of 3x3 with fewer multiplications, exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdkit import Context, param
from kdkit_decompose.layer_stage import LayerStage, Replacement
from kdkit_decompose.speed import capture_inputs, slowdowns


class WinogradConvolution(nn.Module):
    """A convolution of 3x3 as 16 products of matrices for each tile of 2x2 outputs: 4 multiply-adds for an output and a channel pair, not 9.

    Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A over input tiles d of 4x4. The weight is stored transformed, G g Gᵀ: 16 numbers instead of 9.

    Args:
        inputs: channels (batch, inputs, height, width).
        outputs: channels (batch, outputs, height, width).
        padding: zeros at both ends of (height, width).
        bias: whether it has one.

    >>> layer = nn.Conv2d(4, 8, 3, padding=1)
    >>> x = torch.randn(2, 4, 7, 9)
    >>> torch.allclose(WinogradConvolution.of(layer)(x), layer(x), atol=1e-5)
    True
    """

    def __init__(self, inputs: int, outputs: int, padding: tuple[int, int], bias: bool):
        super().__init__()
        self.padding = padding
        self.weight = nn.Parameter(torch.zeros(16, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    @classmethod
    def of(cls, layer: nn.Conv2d) -> WinogradConvolution:
        """With the values, dtype, device, flags and mode of a layer."""
        made = cls(layer.in_channels, layer.out_channels, _padding(layer), layer.bias is not None).to(layer.weight.device, layer.weight.dtype)
        made.weight.data.copy_(transform_weight(layer.weight.detach().double()).to(layer.weight.dtype))
        made.weight.requires_grad_(layer.weight.requires_grad)
        made.bias = cast(nn.Parameter | None, layer.bias)
        return made.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        batch, inputs, height, width = x.shape
        rows, columns = height + 2 * self.padding[0] - 2, width + 2 * self.padding[1] - 2
        down, across = (rows + 1) // 2, (columns + 1) // 2
        x = functional.pad(x, (self.padding[1], self.padding[1] + columns % 2, self.padding[0], self.padding[0] + rows % 2))
        tiles = x.unfold(2, 4, 2).unfold(3, 4, 2)  # (batch, inputs, down, across, 4, 4)
        transformed = _input_transform(_input_transform(tiles).transpose(-1, -2)).transpose(-1, -2)
        products = self.weight @ transformed.permute(4, 5, 1, 0, 2, 3).reshape(16, inputs, -1)
        square = products.reshape(4, 4, -1, batch, down, across).permute(3, 2, 4, 5, 0, 1)
        outputs = _output_transform(_output_transform(square).transpose(-1, -2)).transpose(-1, -2)  # (batch, outputs, down, across, 2, 2)
        made = outputs.transpose(3, 4).reshape(batch, -1, 2 * down, 2 * across)[:, :, :rows, :columns]
        return made if self.bias is None else made + self.bias[:, None, None]

    def extra_repr(self) -> str:
        _, outputs, inputs = self.weight.shape
        return f"{inputs}, {outputs}, padding={self.padding}"


def transform_weight(weight: Tensor) -> Tensor:
    """G g Gᵀ of kernels (out, in, 3, 3): (16, out, in)."""
    transform = weight.new_tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]])
    return (transform @ weight @ transform.T).flatten(2).permute(2, 0, 1)


def _input_transform(tiles: Tensor) -> Tensor:
    """Bᵀ d over the second last dimension of 4, with additions only."""
    first, second, third, fourth = tiles.unbind(-2)
    return torch.stack([first - third, second + third, third - second, second - fourth], -2)


def _output_transform(tiles: Tensor) -> Tensor:
    """Aᵀ m over the second last dimension of 4, with additions only."""
    first, second, third, fourth = tiles.unbind(-2)
    return torch.stack([first + second + third, second - third - fourth], -2)


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    if isinstance(layer.padding, str):
        return (1, 1) if layer.padding == "same" else (0, 0)
    return layer.padding  # type: ignore[return-value]


@dataclass
class Transformed(Replacement):
    """A convolution in Winograd's form."""

    layer: Any
    ranks: tuple[int, ...] = ()

    @property
    def weights(self) -> int:
        return 16 * self.layer.in_channels * self.layer.out_channels

    def structure(self) -> nn.Module:
        return WinogradConvolution(self.layer.in_channels, self.layer.out_channels, _padding(self.layer), self.layer.bias is not None).to(self.layer.weight)

    def made(self) -> nn.Module:
        return WinogradConvolution.of(self.layer)

    def too_dear(self) -> str:
        return ""


class Winograd(LayerStage):
    """Compute convolutions of 3x3 with 2.25 times fewer multiply-adds, by Winograd's minimal filtering F(2x2, 3x3).

    Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks", 2016 (arXiv:1509.09308). The outputs stay the same up to rounding; the
    stored weights grow from 9 to 16 numbers. The libraries of processors already use this where it pays, so written with single
    operations it is usually slower: a note gives its measured time. It helps on devices whose cost is the number of multiplications, and
    to count them.

    Left alone, and named in the notes: other kernels, strides, dilations and padding than zeros, and convolutions in groups.
    """

    id: ClassVar = "decompose.winograd"
    known_as: ClassVar[tuple[str, ...]] = ("minimal filtering", "F(2x2, 3x3)")
    works_on: ClassVar = "convolutions of 3x3"
    keeps_values: ClassVar = True

    guard: bool = param(False, "leave alone the layers that this machine runs slower; layers of less than a million multiply-adds are not timed")

    def kinds(self) -> tuple[type, ...]:
        return nn.Conv2d, nn.ConvTranspose2d

    def obstacle(self, layer: Any) -> str:
        if found := super().obstacle(layer):
            return found
        if layer.kernel_size != (3, 3):
            return "its kernel is not 3x3"
        if set(layer.stride) | set(layer.dilation) != {1}:
            return "it has a stride or a dilation"
        return "" if layer.padding_mode == "zeros" else f"its padding is {layer.padding_mode}"

    def replacements(self, model: nn.Module, layers: Mapping[str, Any], context: Context, *, with_data: bool) -> dict[str, Replacement]:
        found = {name: Transformed(layer) for name, layer in layers.items()}
        if with_data:
            inputs = capture_inputs(model, layers.values(), context.example[:1])
            factors = [factor for _, factor in slowdowns({name: (each.layer, each.structure()) for name, each in found.items()}, inputs) if factor]
            if factors:
                mean = math.exp(sum(map(math.log, factors)) / len(factors))
                context.note(f"on this machine the layers take {mean:.1f} times as long as with the library's kernels, which know this method too")
        return dict(found)

    def tell(self, chosen: Mapping[str, Replacement], context: Context) -> None:
        context.note(f"{len(chosen)} layers with 4 instead of 9 multiply-adds for each output and pair of channels, and 16 stored numbers instead of 9")
