"""The catalogue: light nets by name, built to answer as the teacher does."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models import evaluating
from kdkit.tasks import TokenClassification

if TYPE_CHECKING:
    from kdkit.context import Context

CATALOGUE = {
    "mobilenet-v1": "published:mobilenet_v1",
    "mobilenet-v2": "published:mobilenet_v2",
    "efficientnet-b0": "published:efficientnet_b0",
    "squeezenet": "squeezenet:SqueezeNet",
    "shufflenet-v2": "shufflenet:ShuffleNetV2",
    "mnasnet": "mnasnet:MnasNet",
    "xception": "xception:Xception",
}
"""Where each net is made: (classes, channels, width, size) -> nn.Module."""

SMALLEST = 16
"""Pixels a side, under which nothing is left of an image after the strides."""


def of_catalogue(name: str, width: float, teacher: nn.Module, context: Context) -> nn.Module:
    """A net of the catalogue with fresh weights, as many outputs as the teacher gives and inputs as the example batch has.

    Its batch norms begin with the statistics of the example batch.

    Raises:
        KdError: the inputs are no images, or the outputs are not one a class.
    """
    pixels = images(context.example, name)
    outputs = _outputs(teacher, context, name)
    module, _, maker = CATALOGUE[name].partition(":")
    make = getattr(importlib.import_module(f"kdkit_distill.students.{module}"), maker)
    return settled(make(classes=outputs, channels=pixels.shape[1], width=width, size=min(pixels.shape[2:])), pixels).eval()


def settled(net: nn.Module, pixels: Tensor) -> nn.Module:
    """The net with what its batch norms see of these images as their running statistics; one image by itself says nothing.

    Depthwise convolutions of fresh nets give variances of some thousandths. Beside these the variance of 1 that batch norm begins
    with takes a hundred steps to be forgotten, and in eval mode it is a factor for each of some fifty layers: EfficientNet that
    classifies nine of ten items in train mode was at chance in eval mode.

    Args:
        net: left as it is otherwise; no random number is drawn.
        pixels: (batch, channels, height, width).

    >>> import torch
    >>> settled(nn.Sequential(nn.BatchNorm2d(1)), torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))[0].running_mean
    tensor([2.])
    """
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    weight = next(net.parameters())
    if len(pixels) < 2 or not norms:
        return net
    kept = [norm.momentum for norm in norms]
    with evaluating(net):
        for norm in norms:
            norm.train().momentum = 1.0
        net(pixels.to(weight.device, weight.dtype))
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    return net


def images(batch: Batch, name: str) -> Tensor:
    """The images of a batch, (batch, channels, height, width).

    Raises:
        KdError: it has none, or such as are too small.
    """
    pixels = batch.kwargs.get("pixel_values", batch.args[0] if len(batch.args) == 1 and not batch.kwargs else None)
    if not isinstance(pixels, Tensor) or pixels.ndim != 4:
        raise KdError(f"--student {name} looks at images, (batch, channels, height, width); the batch has {batch}", "grey images need their one channel: x[:, None]")
    if min(pixels.shape[2:]) < SMALLEST:
        raise KdError(f"--student {name} wants images of {SMALLEST} pixels a side at the least; these have {tuple(pixels.shape[2:])}", "--student narrow=0.5")
    return pixels


def _outputs(teacher: nn.Module, context: Context, name: str) -> int:
    task, batch = context.task, context.example
    if getattr(task, "probabilities", False):
        raise KdError(f"--student {name} answers with logits, and the teacher with probabilities", "give a teacher without its last softmax, or --student narrow=0.5")
    weight = next(teacher.parameters(), None)
    batch = batch if weight is None else batch.to(weight.device)
    with evaluating(teacher):
        said = task.prediction(batch.call(teacher), batch)
    if said.ndim != 2 or isinstance(task, TokenClassification):
        raise KdError(f"--student {name} gives one answer an image; the teacher gives {tuple(said.shape)}, for {task.name}", "--student layers=... or narrow=0.5")
    return said.shape[-1]
