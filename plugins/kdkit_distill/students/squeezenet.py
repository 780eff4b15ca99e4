"""SqueezeNet 1.1: fire modules squeeze to few channels before 3x3 convolutions.

Iandola, Han, Moskewicz, Ashraf, Dally, Keutzer, "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters", 2016
(arXiv:1602.07360); 1.1 is the authors' own revision.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdkit_distill.students.layers import strides

# squeezed, and expanded by 1x1 and by 3x3 each; None is a pool
_PLAN = (None, (16, 64), (16, 64), None, (32, 128), (32, 128), None, (48, 192), (48, 192), (64, 256), (64, 256))


class Fire(nn.Module):
    """Squeeze to few channels, expand by 1x1 and 3x3 side by side."""

    def __init__(self, inputs: int, squeezed: int, expanded: int):
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.one = nn.Conv2d(squeezed, expanded, 1)
        self.three = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.squeeze(x))
        return torch.relu(torch.cat([self.one(x), self.three(x)], 1))


class SqueezeNet(nn.Module):
    """(batch, channels, height, width) to (batch, classes) logits.

    The paper's ReLU after the last convolution is left out: logits must be negative where a teacher's are.

    >>> SqueezeNet(10, 1, size=28)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, classes: int = 1000, channels: int = 3, width: float = 1.0, size: int = 224):
        super().__init__()
        stem, *pools = strides(4, size)
        wide = max(1, round(64 * width))
        layers: list[nn.Module] = [nn.Conv2d(channels, wide, 3, stem, padding=1), nn.ReLU(inplace=True)]
        for step in _PLAN:
            if step is None:
                layers.append(nn.MaxPool2d(3, 2, padding=1) if pools.pop(0) == 2 else nn.Identity())
            else:
                squeezed, expanded = (max(1, round(each * width)) for each in step)
                layers.append(Fire(wide, squeezed, expanded))
                wide = 2 * expanded
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Conv2d(wide, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # there is no batch norm that would correct the scale
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(pixel_values))).mean((2, 3))
