"""Building blocks of the catalogue's nets, and strides for small images."""

from __future__ import annotations

from math import ceil

from torch import nn

SMALLEST_MAP = 4
"""The least height and width of the last maps in pixels."""


def strides(count: int, size: int) -> list[int]:
    """The strides of a net that halves its maps `count` times; the first are 1 where images of `size` pixels would shrink below 4.

    >>> strides(5, 224), strides(5, 32), strides(5, 28)
    ([2, 2, 2, 2, 2], [1, 1, 2, 2, 2], [1, 1, 2, 2, 2])
    """
    whole = next((number for number in range(count) if ceil(size / 2 ** (count - number)) >= SMALLEST_MAP), count)
    return [1] * whole + [2] * (count - whole)


def rounded(channels: float, divisor: int = 8) -> int:
    """Channels as a multiple of `divisor`, at least 90 % of the requested number.

    >>> rounded(24 * 0.5), rounded(32), rounded(3)
    (16, 32, 8)
    """
    near = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return near if near >= 0.9 * channels else near + divisor


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True) -> nn.Sequential:
    """Convolution, batch norm and, by default, ReLU; without stride the map keeps its size."""
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))
