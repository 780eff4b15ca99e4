"""MnasNet (B1): inverted residuals with kernels and depths from an architecture search on a phone.

Tan, Chen, Pang, Vasudevan, Sandler, Howard, Le, "MnasNet: Platform-Aware Neural Architecture Search for Mobile", CVPR 2019
(arXiv:1807.11626).
"""

from __future__ import annotations

from torch import Tensor, nn

from kdkit_distill.students.layers import convolution, rounded, strides

# outputs, kernel, halves the map, expansion, repeats
_PLAN = ((24, 3, True, 3, 3), (40, 5, True, 3, 3), (80, 5, True, 6, 3), (96, 3, False, 6, 2), (192, 5, True, 6, 4), (320, 3, False, 6, 1))


class Inverted(nn.Module):
    """Expand, depthwise, project; with a skip connection if the map keeps its shape."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        self.skips = stride == 1 and inputs == outputs
        self.convolved = nn.Sequential(convolution(inputs, wide, 1), convolution(wide, wide, kernel, stride, wide), convolution(wide, outputs, 1, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convolved(x) if self.skips else self.convolved(x)


class MnasNet(nn.Module):
    """(batch, channels, height, width) to (batch, classes) logits.

    >>> import torch
    >>> MnasNet(10, 1, width=0.5, size=28)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, classes: int = 1000, channels: int = 3, width: float = 1.0, size: int = 224):
        super().__init__()
        stem, *halving = strides(5, size)
        wide, inputs = rounded(32 * width), rounded(16 * width)
        layers: list[nn.Module] = [convolution(channels, wide, 3, stem), convolution(wide, wide, 3, 1, wide), convolution(wide, inputs, 1, relu=False)]
        for outputs, kernel, halves, expansion, repeats in _PLAN:
            stride, outputs = halving.pop(0) if halves else 1, rounded(outputs * width)
            for number in range(repeats):
                layers.append(Inverted(inputs, outputs, kernel, 1 if number else stride, expansion))
                inputs = outputs
        self.features = nn.Sequential(*layers, convolution(inputs, 1280, 1))
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(1280, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(pixel_values).mean((2, 3))))
