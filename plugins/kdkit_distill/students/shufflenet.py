"""ShuffleNet V2: half of the channels pass unchanged, the others are convolved, and both are shuffled.

Ma, Zhang, Zheng, Sun, "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV 2018 (arXiv:1807.11164).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdkit_distill.students.layers import convolution, strides

_WIDTHS = {0.5: (48, 96, 192, 1024), 1.0: (116, 232, 464, 1024), 1.5: (176, 352, 704, 1024), 2.0: (244, 488, 976, 2048)}
"""The paper's; other widths are scaled from 1.0."""


class Unit(nn.Module):
    """Convolves one half of the channels; a unit that halves the map, or widens it, convolves both."""

    def __init__(self, inputs: int, outputs: int, stride: int, first: bool):
        super().__init__()
        half = outputs // 2
        taken = inputs if first else half
        self.pass_by = nn.Sequential(convolution(inputs, inputs, 3, stride, inputs, relu=False), convolution(inputs, half, 1)) if first else None
        self.convolved = nn.Sequential(convolution(taken, half, 1), convolution(half, half, 3, stride, half, relu=False), convolution(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        kept, taken = (self.pass_by(x), x) if self.pass_by is not None else x.chunk(2, 1)
        return torch.stack([kept, self.convolved(taken)], 2).flatten(1, 2)


class ShuffleNetV2(nn.Module):
    """(batch, channels, height, width) to (batch, classes) logits.

    >>> ShuffleNetV2(10, 1, width=0.5, size=28)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, classes: int = 1000, channels: int = 3, width: float = 1.0, size: int = 224):
        super().__init__()
        stem, pool, *halving = strides(5, size)
        *widths, last = _WIDTHS.get(width) or (*(2 * max(1, round(each * width / 2)) for each in _WIDTHS[1.0][:3]), max(8, round(1024 * width)))
        pooled = nn.MaxPool2d(3, 2, padding=1) if pool == 2 else nn.Identity()
        layers: list[nn.Module] = [convolution(channels, 24, 3, stem), pooled]
        inputs = 24
        for outputs, repeats, stride in zip(widths, (4, 8, 4), halving, strict=True):
            layers += [Unit(inputs, outputs, stride, first=True), *(Unit(outputs, outputs, 1, first=False) for _ in range(repeats - 1))]
            inputs = outputs
        self.features = nn.Sequential(*layers, convolution(inputs, last, 1))
        self.head = nn.Linear(last, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.features(pixel_values).mean((2, 3)))
