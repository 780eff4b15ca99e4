"""Packed layers: linear layers, convolutions and embeddings whose weights are integers of a few bits, in memory and on disk.

Each call computes the float weight from the integers, uses it and drops it again. An embedding does so only for the rows that are looked up.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdkit import Trait
from kdkit.models import linear_kinds
from kdkit_quantize.packed_export import BlockedEmbedding, BlockedLinear, looks_up_packed, multiplies_packed


class _PackedLayer(nn.Module):
    """What packed layers share: the packed weight, and `weight` for code that reads it."""

    packed: Any
    """A `PackedWeight`, or another module with its methods."""

    @property
    def kdkit_traits(self) -> frozenset[Trait]:
        """Those of the packed weight."""
        return self.packed.kdkit_traits

    def _take(self, layer: nn.Module, packed: nn.Module, names: tuple[str, ...]) -> None:
        """Become the layer with another weight: its options, its bias, its mode."""
        nn.Module.__init__(self)
        for name in names:
            setattr(self, name, getattr(layer, name))
        if "bias" in layer._parameters:
            self.register_parameter("bias", layer._parameters["bias"])
        self.packed = packed
        self.train(layer.training)

    def kdkit_exported(self) -> nn.Module:
        """The form in which it is exported to ONNX: packed, where onnxruntime can run that, or else in float."""
        return self.kdkit_unpacked()

    def kdkit_unpacked(self) -> nn.Module:
        """The layer in float, with the weight that the integers stand for; an adapter can train beside a packed layer that has this method."""
        raise NotImplementedError

    def _put(self, layer: Any) -> Any:
        """Give a layer without numbers the weight and the bias."""
        weight: Any = self.weight
        layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        if "bias" in self._parameters:
            layer.bias = self._parameters["bias"]
        return layer.train(self.training)

    def extra_repr(self) -> str:
        return f"bias={self._parameters.get('bias') is not None}"


class PackedLinear(_PackedLayer, nn.Linear):
    """A linear layer (..., in) -> (..., out) with a packed weight (out, in).

    >>> from kdkit_quantize.group_quantization import round_to_nearest
    >>> from kdkit_quantize.packed_weight import PackedWeight
    >>> layer = nn.Linear(16, 4)
    >>> packed = PackedLinear(layer, PackedWeight(round_to_nearest(layer.weight, 8, 16), 8, layer.weight.shape, layer.weight.dtype))
    >>> x = torch.ones(1, 16)
    >>> bool((packed(x) - layer(x)).abs().max() < 0.05)
    True
    """

    def __init__(self, layer: nn.Linear, packed: nn.Module):
        self._take(layer, packed, ("in_features", "out_features"))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight as floats."""
        return self.packed()

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.packed(x.dtype), _like(self.bias, x))

    def kdkit_exported(self) -> nn.Module:
        return BlockedLinear(self.kdkit_unpacked(), self.packed) if multiplies_packed(self.packed) else self.kdkit_unpacked()

    def kdkit_unpacked(self) -> nn.Module:
        return self._put(nn.Linear(self.in_features, self.out_features, bias=False, device="meta"))


class PackedTransposedLinear(_PackedLayer):
    """The `Conv1D` of transformers, (..., in) -> (..., out), with a packed weight that is held as (out, in)."""

    def __init__(self, layer: Any, packed: nn.Module):
        self._take(layer, packed, ("nx", "nf"))

    @property
    def weight(self) -> Tensor:
        """The weight (in, out) as floats."""
        return self.packed().T

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.packed(x.dtype), _like(self.bias, x))

    def kdkit_exported(self) -> nn.Module:
        return BlockedLinear(self.kdkit_unpacked(), self.packed) if multiplies_packed(self.packed) else self.kdkit_unpacked()

    def kdkit_unpacked(self) -> nn.Module:
        from transformers.pytorch_utils import Conv1D

        with torch.device("meta"):
            return self._put(Conv1D(self.nf, self.nx))


class PackedEmbedding(_PackedLayer, nn.Embedding):
    """An embedding whose rows are packed."""

    def __init__(self, layer: nn.Embedding, packed: nn.Module):
        self._take(layer, packed, ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight as floats."""
        return self.packed()

    def forward(self, input: Tensor) -> Tensor:
        return self.packed.rows(input)

    def kdkit_exported(self) -> nn.Module:
        return BlockedEmbedding(self.kdkit_unpacked(), self.packed) if looks_up_packed(self.packed) else self.kdkit_unpacked()

    def kdkit_unpacked(self) -> nn.Module:
        return self._put(nn.Embedding(self.num_embeddings, self.embedding_dim, self.padding_idx, sparse=self.sparse, device="meta"))

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


_GEOMETRY = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "transposed", "output_padding", "groups", "padding_mode",
    "_reversed_padding_repeated_twice",
)  # fmt: skip


class _PackedConvolution(_PackedLayer):
    plain: ClassVar[Any]

    def __init__(self, layer: nn.modules.conv._ConvNd, packed: nn.Module):
        self._take(layer, packed, _GEOMETRY)

    @property
    def weight(self) -> Tensor:
        """The weight as floats."""
        return self.packed()

    def forward(self, input: Tensor) -> Tensor:
        convolve: Any = self._conv_forward
        return convolve(input, self.packed(input.dtype), _like(self.bias, input))

    def kdkit_unpacked(self) -> nn.Module:
        geometry = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups)
        return self._put(self.plain(self.in_channels, self.out_channels, *geometry, bias=False, padding_mode=self.padding_mode, device="meta"))

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, groups={self.groups}"


class PackedConv1d(_PackedConvolution, nn.Conv1d):  # type: ignore[override]
    """A one-dimensional convolution with a packed weight."""

    plain = nn.Conv1d


class PackedConv2d(_PackedConvolution, nn.Conv2d):  # type: ignore[override]
    """A two-dimensional convolution with a packed weight."""

    plain = nn.Conv2d


class PackedConv3d(_PackedConvolution, nn.Conv3d):  # type: ignore[override]
    """A three-dimensional convolution with a packed weight."""

    plain = nn.Conv3d


PACKED_KINDS: dict[type, Any] = {
    nn.Linear: PackedLinear,
    nn.modules.linear.NonDynamicallyQuantizableLinear: PackedLinear,
    nn.Embedding: PackedEmbedding,
    nn.Conv1d: PackedConv1d,
    nn.Conv2d: PackedConv2d,
    nn.Conv3d: PackedConv3d,
}
"""Kinds of layers, and the packed layer that replaces one of exactly that kind."""


def packed_kind(layer: nn.Module) -> Any:
    """The packed layer that can replace a layer; None if there is none.

    >>> packed_kind(nn.Linear(2, 2)).__name__, packed_kind(nn.LSTM(2, 2))
    ('PackedLinear', None)
    """
    return PACKED_KINDS.get(type(layer)) or (PackedTransposedLinear if is_transposed(layer) else None)


def is_transposed(layer: nn.Module) -> bool:
    """Whether a layer is the linear layer of transformers that holds its weight as (in, out)."""
    return type(layer) in linear_kinds()[1:]


def _like(bias: Any, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)
