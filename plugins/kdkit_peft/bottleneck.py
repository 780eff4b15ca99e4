"""Bottlenecks: small two-layer nets beside or behind the layers of a model.

Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", 2019 (arXiv:1902.00751).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdkit_peft.adapters import CONVOLUTIONS

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class Bottleneck(nn.Module):
    """up(activation(down(x))), from (..., inputs) to (..., outputs); `up` starts at 0, so it starts as 0.

    inputs·width + width + width·outputs + outputs parameters.

    >>> sum(weight.numel() for weight in Bottleneck(768, 48, 768, "relu").parameters())    # of 24 in BERT-base: 1,789,056
    74544
    """

    def __init__(self, inputs: int, width: int, outputs: int, activation: str):
        super().__init__()
        self.down, self.activation, self.up = nn.Linear(inputs, width), ACTIVATIONS[activation](), nn.Linear(width, outputs)
        nn.init.normal_(self.down.weight, std=0.01)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.activation(self.down(x)))


class Adapted(nn.Module):
    """A layer with a bottleneck: serial, y + adapter(y) for the layer's output y, or parallel, y + scale · adapter(x) for its input x.

    Args:
        base: the layer, linear or a convolution whose outputs are (batch, channels, positions...).
        adapter: of its widths.
        parallel: whether the adapter reads the layer's input.
        scale: of a parallel adapter.
    """

    def __init__(self, base: nn.Module, adapter: Bottleneck, parallel: bool, scale: float = 1.0):
        super().__init__()
        self.base, self.adapter = base, adapter
        self.parallel, self.scale = parallel, scale

    def forward(self, x: Tensor) -> Tensor:
        output = self.base(x)
        source = x if self.parallel else output
        dtype = self.adapter.down.weight.dtype
        if isinstance(self.base, CONVOLUTIONS):
            added = self.adapter(source.movedim(1, -1).to(dtype)).movedim(-1, 1)
        else:
            added = self.adapter(source.to(dtype))
        return output + (self.scale * added if self.parallel else added).to(output.dtype)

    def extra_repr(self) -> str:
        return f"parallel, scale={self.scale:g}" if self.parallel else "serial"


def adapt(layer: Any, width: int, activation: str, parallel: bool, scale: float) -> Adapted:
    """A layer with a new bottleneck, of at least float32, on its device and in its mode.

    >>> layer, x = nn.Linear(4, 6), torch.randn(2, 4)
    >>> torch.equal(adapt(layer, 2, "relu", parallel=True, scale=1.0)(x), layer(x))
    True
    """
    inputs, outputs = widths(layer)
    adapter = Bottleneck(inputs if parallel else outputs, width, outputs, activation)
    adapter.to(layer.weight.device, torch.promote_types(layer.weight.dtype, torch.float32))
    return Adapted(layer, adapter, parallel, scale).train(layer.training)


def widths(layer: Any) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer, an HF Conv1D or a convolution.

    >>> widths(nn.Conv2d(3, 8, 5))
    (3, 8)
    """
    first, second = layer.weight.shape[:2]
    return (second, first) if isinstance(layer, (nn.Linear, *CONVOLUTIONS)) else (first, second)
