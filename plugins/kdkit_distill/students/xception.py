"""Xception: every convolution after the stem is depthwise separable, every block has a skip connection.

Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017 (arXiv:1610.02357).
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from kdkit_distill.students.layers import convolution, strides


def separable(inputs: int, outputs: int) -> nn.Sequential:
    """A depthwise 3x3 convolution, a 1x1 convolution over the channels, batch norm."""
    return nn.Sequential(nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """Separable convolutions, each after a ReLU except the net's first, and a skip connection, convolved where shapes differ."""

    def __init__(self, widths: tuple[int, ...], stride: int = 1, first: bool = False):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.ReLU(), separable(inputs, outputs)]
        self.convolved = nn.Sequential(*layers[first:], nn.MaxPool2d(3, stride, padding=1) if stride > 1 else nn.Identity())
        self.skip = convolution(widths[0], widths[-1], 1, stride, relu=False) if widths[0] != widths[-1] else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.convolved(x) + self.skip(x)


class Xception(nn.Module):
    """(batch, channels, height, width) to (batch, classes) logits.

    >>> import torch
    >>> Xception(10, 1, width=0.1, size=28)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, classes: int = 1000, channels: int = 3, width: float = 1.0, size: int = 224):
        super().__init__()
        a, b, c, d, e, f, g, h = (max(4, round(each * width)) for each in (32, 64, 128, 256, 728, 1024, 1536, 2048))
        stem, one, two, three, last = strides(5, size)
        entry = [Block((b, c, c), one, first=True), Block((c, d, d), two), Block((d, e, e), three)]
        middle = [Block((e, e, e, e)) for _ in range(8)]
        self.stem = nn.Sequential(convolution(channels, a, 3, stem), convolution(a, b, 3))
        self.blocks = nn.Sequential(*entry, *middle, Block((e, e, f), last))
        self.tail = nn.Sequential(separable(f, g), nn.ReLU(), separable(g, h), nn.ReLU())
        self.head = nn.Linear(h, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.tail(self.blocks(self.stem(pixel_values))).mean((2, 3)))
