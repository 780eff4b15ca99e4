"""Light nets from transformers, built from a configuration; adapted to small images and to training from scratch.

Their configurations come from TensorFlow checkpoints, where "momentum" and "keep probability" mean one minus torch's meaning:
unchanged, batch norm would use one batch only and MobileNet V1 would drop 99.9 % of its features. Their weights are
initialized for fine-tuning, not for training from scratch.

Howard et al., "MobileNets", 2017 (arXiv:1704.04861); Sandler et al., "MobileNetV2", CVPR 2018 (arXiv:1801.04381); Tan, Le,
"EfficientNet", ICML 2019 (arXiv:1905.11946).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from kdkit_distill.students.layers import rounded, strides

MOMENTUM = 0.1
"""Momentum of batch norm in torch's meaning: the share of the new batch."""


def mobilenet_v1(classes: int = 1000, channels: int = 3, width: float = 1.0, size: int = 224) -> nn.Module:
    """MobileNetV1ForImageClassification with its width multiplier."""
    from transformers import MobileNetV1Config, MobileNetV1ForImageClassification

    options: dict[str, Any] = {"num_channels": channels, "image_size": size, "depth_multiplier": width, "num_labels": classes}
    return _loosened(MobileNetV1ForImageClassification(MobileNetV1Config(**options, classifier_dropout_prob=0.001)), size)


def mobilenet_v2(classes: int = 1000, channels: int = 3, width: float = 1.0, size: int = 224) -> nn.Module:
    """MobileNetV2ForImageClassification with its width multiplier."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    options: dict[str, Any] = {"num_channels": channels, "image_size": size, "depth_multiplier": width, "num_labels": classes}
    return _loosened(MobileNetV2ForImageClassification(MobileNetV2Config(**options, classifier_dropout_prob=0.2)), size)


def efficientnet_b0(classes: int = 1000, channels: int = 3, width: float = 1.0, size: int = 224) -> nn.Module:
    """EfficientNetForImageClassification in the proportions of B0."""
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    stem, *halving = strides(5, size)
    stages = [halving.pop(0) if stride == 2 else 1 for stride in EfficientNetConfig().strides]
    options: dict[str, Any] = {"num_channels": channels, "image_size": size, "width_coefficient": width, "num_labels": classes, "strides": stages}
    options |= {"depth_coefficient": 1.0, "hidden_dim": max(128, rounded(1280 * min(1.0, width))), "dropout_rate": 0.2, "batch_norm_momentum": MOMENTUM}
    net: Any = EfficientNetForImageClassification(EfficientNetConfig(**options))
    if stem == 1:
        net.efficientnet.embeddings.convolution.stride = (1, 1)
        net.efficientnet.embeddings.padding = nn.ZeroPad2d(1)
    return _drawn(net)


def _loosened(net: nn.Module, size: int) -> nn.Module:
    """The net with strides for the size of its images; padding follows from the strides."""
    halving = [module for module in net.modules() if isinstance(module, nn.Conv2d) and module.stride == (2, 2)]
    for convolution, stride in zip(halving, strides(len(halving), size), strict=True):
        convolution.stride = (stride, stride)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = MOMENTUM
    return _drawn(net)


def _drawn(net: nn.Module) -> nn.Module:
    """The net with convolutions initialized as in He et al. (2015), and batch norms with an initial scale of one.

    transformers initializes EfficientNet's scales around zero, so that no signal reaches the last layer.
    """
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net
