"""Frozen layers: what a training does not name stays bit for bit, weights and running statistics alike."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from kdkit.guards.torch_modes import without_gradients


class FrozenLayers:
    """Freezes all modules of a model but some, for one training; create it in a part's `open`, and `restore` in its `close`.

    Weights get no gradients. A module with buffers, such as a BatchNorm or a spectral norm, computes as in eval mode, so that it
    neither uses nor updates the statistics of the training batches; what updates a buffer all the same is undone by `restore`.
    A weight that a trained module shares is trained.

    Args:
        model: in train mode.
        trained: modules to train, each with all modules inside it.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)).train()
    >>> frozen = FrozenLayers(net, [net[2]])
    >>> net[1].training, [name for name, weight in net.named_parameters() if weight.requires_grad]
    (False, ['2.weight', '2.bias'])
    """

    def __init__(self, model: nn.Module, trained: Iterable[nn.Module]):
        spared = {inner for module in trained for inner in module.modules()}
        kept = {id(tensor) for module in spared for tensor in (*module._parameters.values(), *module._buffers.values())}
        self._buffers: list[tuple[nn.Module, str, torch.Tensor | None]] = []
        for module in model.modules():
            for weight in module._parameters.values():
                if weight is not None and id(weight) not in kept:
                    weight.requires_grad_(False)
            if module in spared or not module._buffers:
                continue
            module.training = False
            self._buffers += [(module, name, None if held is None else held.detach().clone()) for name, held in module._buffers.items() if id(held) not in kept]

    @without_gradients
    def restore(self) -> None:
        """Put back every frozen buffer that the training changed."""
        for module, name, before in self._buffers:
            now = module._buffers.get(name)
            if before is None or now is None or now.shape != before.shape or now.dtype != before.dtype:
                module._buffers[name] = before
            elif not torch.equal(now, before.to(now.device)):
                now.copy_(before)
