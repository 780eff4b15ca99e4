"""Dead neurons: a hidden neuron whose outgoing weights are all small can go, and its bias moves on."""

from itertools import pairwise
from typing import ClassVar

import torch
from torch import nn

from kdkit import KdError, Stage, Trait, param


class DeadNeurons(Stage):
    """Remove hidden neurons whose outgoing weights are all below a threshold."""

    id: ClassVar = "prune.dead-neurons"
    requires: ClassVar = {Trait.FLOAT_WEIGHTS, Trait.FREE_STRUCTURE}
    threshold: float = param(0.01, "largest outgoing weight of a neuron that may go", gt=0)

    def apply(self, model, context):
        removed = sum(self._prune(first, second) for first, second in _pairs(model))
        if not removed:
            raise KdError(f"no neuron has all its outgoing weights below {self.threshold}", "raise --threshold")
        context.note(f"{removed} neurons removed")

    def _prune(self, first: nn.Linear, second: nn.Linear) -> int:
        alive = second.weight.abs().amax(0) >= self.threshold
        if alive.all() or not alive.any():
            return 0
        _keep(first, alive, 0)
        _keep(second, alive, 1)
        return int((~alive).sum())


def _pairs(model: nn.Module):
    for parent in model.modules():
        if isinstance(parent, nn.Sequential):
            linears = [module for module in parent if isinstance(module, nn.Linear)]
            yield from pairwise(linears)


def _keep(layer: nn.Linear, alive: torch.Tensor, dim: int) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[alive] if dim == 0 else layer.weight.detach()[:, alive])
    if dim == 0 and layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[alive])
    layer.out_features, layer.in_features = layer.weight.shape
