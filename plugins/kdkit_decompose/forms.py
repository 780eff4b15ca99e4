"""Forms: a layer's weight as a matrix, and a product of two matrices as two layers.

A convolution has three forms. By output channels, a smaller convolution and one of 1x1: Zhang, Zou, He, Sun, "Accelerating Very Deep
Convolutional Networks", 2015 (arXiv:1505.06798). By input channels, the other way round. By space, a column of the kernel and then a row:
Jaderberg, Vedaldi, Zisserman, "Speeding up Convolutional Neural Networks with Low Rank Expansions", 2014 (arXiv:1405.3866).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from kdkit.models import linear_kinds

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Form(ABC):
    """A layer's weight as a matrix (rows, columns), which is approximated by up (rows, rank) · down (rank, columns).

    The matrix has as many elements as the weight; a product of rank r has r·(rows + columns).
    """

    name: str
    gives_product: bool
    """Whether the output of the layer is what its matrix gives for one vector; else it is a sum over several vectors."""

    @abstractmethod
    def fits(self, layer: nn.Module) -> bool:
        """Whether a layer can be seen in this form."""

    @abstractmethod
    def matrix(self, layer: Any) -> Tensor:
        """The weight as (rows, columns) float32."""

    @abstractmethod
    def columns(self, layer: Any, inputs: Tensor) -> Tensor:
        """The vectors (..., columns) that the matrix multiplies."""

    @abstractmethod
    def product(self, layer: Any, output: Tensor) -> Tensor:
        """What the matrix gives for these vectors (..., rows): the output without the bias."""

    @abstractmethod
    def layers(self, layer: Any, rank: int) -> tuple[nn.Module, nn.Module]:
        """Two layers of that rank without the layer's values; the second one has a bias if the layer has one."""

    @abstractmethod
    def weights(self, layer: Any, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of these two layers: `down` (rank, columns) and `up` (rows, rank) in their shapes."""

    @abstractmethod
    def shape(self, layer: Any) -> tuple[int, int]:
        """(rows, columns) of the matrix."""


class _Linear(Form):
    """An nn.Linear, or an HF Conv1D, which is one with its weight transposed, as two linear layers."""

    name = "linear"
    gives_product = True

    def fits(self, layer: nn.Module) -> bool:
        return isinstance(layer, linear_kinds())

    def matrix(self, layer: Any) -> Tensor:
        weight = layer.weight.detach().float()
        return weight if isinstance(layer, nn.Linear) else weight.T

    def shape(self, layer: Any) -> tuple[int, int]:
        first, second = layer.weight.shape
        return (first, second) if isinstance(layer, nn.Linear) else (second, first)

    def columns(self, layer: Any, inputs: Tensor) -> Tensor:
        return inputs

    def product(self, layer: Any, output: Tensor) -> Tensor:
        return output if layer.bias is None else output - layer.bias

    def layers(self, layer: Any, rank: int) -> tuple[nn.Module, nn.Module]:
        rows, columns = self.shape(layer)
        return nn.Linear(columns, rank, bias=False), nn.Linear(rank, rows, bias=layer.bias is not None)

    def weights(self, layer: Any, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        return down, up


class _Channel(Form):
    """A convolution as one with `rank` channels and the same kernel, and one of 1x1: the matrix is (out, in · kernel)."""

    name = "channel"
    gives_product = True

    def fits(self, layer: nn.Module) -> bool:
        return is_plain_convolution(layer)

    def matrix(self, layer: Any) -> Tensor:
        return layer.weight.detach().float().flatten(1)

    def shape(self, layer: Any) -> tuple[int, int]:
        return layer.out_channels, math.prod(layer.weight.shape[1:])

    def columns(self, layer: Any, inputs: Tensor) -> Tensor:
        return patches(layer, inputs)

    def product(self, layer: Any, output: Tensor) -> Tensor:
        channels_last = output.movedim(-1 - len(layer.kernel_size), -1)
        return channels_last if layer.bias is None else channels_last - layer.bias

    def layers(self, layer: Any, rank: int) -> tuple[nn.Module, nn.Module]:
        kind = convolution_kind(layer)
        return kind(layer.in_channels, rank, layer.kernel_size, bias=False, **reading_options(layer)), kind(rank, layer.out_channels, 1, bias=layer.bias is not None)

    def weights(self, layer: Any, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        return down.reshape(-1, *layer.weight.shape[1:]), up.reshape(*up.shape, *(1 for _ in layer.kernel_size))


class _Spatial(Form):
    """A convolution of two dimensions as a column, k x 1, and then a row, 1 x k: the matrix is (out · width, in · height) of the kernel."""

    name = "spatial"
    gives_product = False

    def fits(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.Conv2d) and is_plain_convolution(layer) and min(layer.kernel_size) > 1

    def matrix(self, layer: Any) -> Tensor:
        outputs, inputs, height, width = layer.weight.shape
        return layer.weight.detach().float().permute(0, 3, 1, 2).reshape(outputs * width, inputs * height)

    def shape(self, layer: Any) -> tuple[int, int]:
        outputs, inputs, height, width = layer.weight.shape
        return outputs * width, inputs * height

    def columns(self, layer: Any, inputs: Tensor) -> Tensor:
        column, _ = self.layers(layer, 1)
        return patches(column, inputs)

    def product(self, layer: Any, output: Tensor) -> Tensor:
        raise NotImplementedError("the output is a sum over the columns of the kernel")

    def layers(self, layer: Any, rank: int) -> tuple[nn.Module, nn.Module]:
        def along(axis: int) -> dict[str, Any]:
            def only(sizes: Any, other: int) -> Any:
                return sizes if isinstance(sizes, str) else tuple(size if axis == each else other for each, size in enumerate(sizes))

            sizes = {name: only(getattr(layer, name), 1) for name in ("kernel_size", "stride", "dilation")}
            return {**sizes, "padding": only(layer.padding, 0), "padding_mode": layer.padding_mode}

        return nn.Conv2d(layer.in_channels, rank, bias=False, **along(0)), nn.Conv2d(rank, layer.out_channels, bias=layer.bias is not None, **along(1))

    def weights(self, layer: Any, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        outputs, inputs, height, width = layer.weight.shape
        return down.reshape(-1, inputs, height, 1), up.reshape(outputs, width, -1).transpose(1, 2)[:, :, None]


class _Input(Form):
    """A convolution as one of 1x1 to `rank` channels, and one with the same kernel: the matrix is (out · kernel, in)."""

    name = "input"
    gives_product = False

    def fits(self, layer: nn.Module) -> bool:
        return is_plain_convolution(layer)

    def matrix(self, layer: Any) -> Tensor:
        return layer.weight.detach().float().movedim(1, -1).flatten(0, -2)

    def shape(self, layer: Any) -> tuple[int, int]:
        return layer.out_channels * math.prod(layer.kernel_size), layer.in_channels

    def columns(self, layer: Any, inputs: Tensor) -> Tensor:
        return inputs.movedim(-1 - len(layer.kernel_size), -1)

    def product(self, layer: Any, output: Tensor) -> Tensor:
        raise NotImplementedError("the output is a sum over the positions of the kernel")

    def layers(self, layer: Any, rank: int) -> tuple[nn.Module, nn.Module]:
        kind = convolution_kind(layer)
        return kind(layer.in_channels, rank, 1, bias=False), kind(rank, layer.out_channels, layer.kernel_size, bias=layer.bias is not None, **reading_options(layer))

    def weights(self, layer: Any, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        kernel = layer.weight.shape[2:]
        return down.reshape(*down.shape, *(1 for _ in kernel)), up.reshape(layer.out_channels, *kernel, -1).movedim(-1, 1)


LINEAR, CHANNEL, SPATIAL, INPUT = _Linear(), _Channel(), _Spatial(), _Input()
FORMS: tuple[Form, ...] = (LINEAR, CHANNEL, SPATIAL, INPUT)


def is_plain_convolution(layer: nn.Module) -> bool:
    """Whether it is a convolution in one group, not a transposed one.

    >>> is_plain_convolution(nn.Conv2d(4, 8, 3, stride=2)), is_plain_convolution(nn.Conv2d(4, 8, 3, groups=2))
    (True, False)
    """
    return isinstance(layer, CONVOLUTIONS) and layer.groups == 1


def convolution_kind(layer: nn.Module) -> Any:
    """The class of `CONVOLUTIONS` that a layer is an instance of.

    >>> convolution_kind(nn.Conv1d(4, 8, 3)).__name__
    'Conv1d'
    """
    return next(kind for kind in CONVOLUTIONS if isinstance(layer, kind))


def reading_options(layer: Any) -> dict[str, Any]:
    """How a convolution reads its inputs: the options that a convolution with the same kernel and other channels takes over.

    >>> reading_options(nn.Conv1d(4, 8, 3, stride=2))
    {'stride': (2,), 'padding': (0,), 'dilation': (1,), 'padding_mode': 'zeros'}
    """
    return {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode")}


def patches(layer: Any, inputs: Tensor) -> Tensor:
    """The patches (batch, positions..., in · kernel) of a convolution's inputs (batch, in, positions...) that its kernel multiplies.

    >>> import torch
    >>> patches(nn.Conv2d(4, 8, 3, stride=2, padding=1), torch.zeros(5, 4, 6, 6)).shape
    torch.Size([5, 3, 3, 36])
    """
    mode, before = ("constant" if layer.padding_mode == "zeros" else layer.padding_mode), layer._reversed_padding_repeated_twice
    inputs = functional.pad(inputs, before, mode=mode) if any(before) else inputs
    first, dimensions = inputs.dim() - len(layer.kernel_size), len(layer.kernel_size)
    for axis, (size, stride, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), start=first):
        inputs = inputs.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    return inputs.movedim(first - 1, first - 1 + dimensions).flatten(-1 - dimensions)
