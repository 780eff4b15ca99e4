"""The catalogue: light nets by name, built for the teacher's inputs and classes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from torch import Tensor, nn

from kdkit import Batch, KdError
from kdkit.models import evaluating
from kdkit.tasks import TokenClassification

if TYPE_CHECKING:
    from kdkit import Context

CATALOGUE = {
    "mobilenet-v1": "published:mobilenet_v1",
    "mobilenet-v2": "published:mobilenet_v2",
    "efficientnet-b0": "published:efficientnet_b0",
    "squeezenet": "squeezenet:SqueezeNet",
    "shufflenet-v2": "shufflenet:ShuffleNetV2",
    "mnasnet": "mnasnet:MnasNet",
    "xception": "xception:Xception",
}
"""The constructor of each net: (classes, channels, width, size) -> nn.Module."""

SMALLEST = 16
"""The least height and width of images in pixels; smaller ones vanish after the strides."""


def of_catalogue(name: str, width: float, teacher: nn.Module, context: Context) -> nn.Module:
    """A net of the catalogue with random weights, the teacher's number of outputs, and the channels of the example batch.

    Its batch norms start with the statistics of the example batch.

    Raises:
        KdError: the inputs are not images, or the outputs are not one for each class.
    """
    pixels = images(context.example, name)
    outputs = _outputs(teacher, context, name)
    module, _, maker = CATALOGUE[name].partition(":")
    make = getattr(importlib.import_module(f"kdkit_distill.students.{module}"), maker)
    return settled(make(classes=outputs, channels=pixels.shape[1], width=width, size=min(pixels.shape[2:])), pixels).eval()


def settled(net: nn.Module, pixels: Tensor) -> nn.Module:
    """Set the running statistics of the net's batch norms to those of these images; nothing changes for a single image.

    Depthwise convolutions of untrained nets have outputs with variances of about 0.001. The initial running variance of 1 takes a
    hundred steps to decay, and in eval mode the error multiplies over about fifty layers: an EfficientNet with 90 % accuracy in
    train mode was at chance in eval mode.

    Args:
        net: otherwise unchanged; no random numbers are drawn.
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
        KdError: it has none, or they are too small.
    """
    pixels = batch.kwargs.get("pixel_values", batch.args[0] if len(batch.args) == 1 and not batch.kwargs else None)
    if not isinstance(pixels, Tensor) or pixels.ndim != 4:
        raise KdError(f"--student {name} needs images, (batch, channels, height, width), but the batch has {batch}", "grey images need a channel dimension: x[:, None]")
    if min(pixels.shape[2:]) < SMALLEST:
        raise KdError(f"--student {name} needs images of at least {SMALLEST}x{SMALLEST} pixels; these have {tuple(pixels.shape[2:])}", "--student narrow=0.5")
    return pixels


def _outputs(teacher: nn.Module, context: Context, name: str) -> int:
    task, batch = context.task, context.example
    if getattr(task, "probabilities", False):
        raise KdError(f"--student {name} returns logits, but the teacher returns probabilities", "pass a teacher without its last softmax, or --student narrow=0.5")
    weight = next(teacher.parameters(), None)
    batch = batch if weight is None else batch.to(weight.device)
    with evaluating(teacher):
        predicted = task.prediction(batch.call(teacher), batch)
    if predicted.ndim != 2 or isinstance(task, TokenClassification):
        raise KdError(
            f"--student {name} returns one vector of logits for each image, but the teacher returns {tuple(predicted.shape)}, for {task.name}",
            "--student layers=... or narrow=0.5",
        )
    return predicted.shape[-1]
