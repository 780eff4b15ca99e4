"""BatchNorm statistics after a cut: the units that went no longer take part in them, so they are estimated again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdkit import Batch
from kdkit.guards import always_run
from kdkit.models import device_of


def reestimate(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Set the running statistics of every BatchNorm to their mean over `batches`, in place; nothing else changes.

    Only BatchNorms are in training mode, so dropout stays off. One that no batch reaches keeps its statistics. Batches of one item are
    passed over, because a layer may have a single value for each channel then.

    Returns:
        How many BatchNorms have new statistics.

    >>> net = nn.BatchNorm1d(1)
    >>> reestimate(net, [Batch((torch.tensor([[1.0], [3.0]]),)), Batch((torch.tensor([[5.0], [7.0]]),))])
    1
    >>> net.running_mean, net.running_var
    (tensor([4.]), tensor([2.]))
    """
    norms = list(norms_with_statistics(model))
    modes = [(module, module.training) for module in model.modules()]
    before = [(norm.momentum, [tensor.clone() for tensor in _statistics(norm)]) for norm in norms]

    def restore() -> None:
        for norm, (momentum, statistics) in zip(norms, before, strict=True):
            outdated = slice(2, None) if norm.num_batches_tracked else slice(None)
            norm.momentum = momentum
            for now, then in zip(_statistics(norm)[outdated], statistics[outdated], strict=True):
                now.copy_(then)
        for module, mode in modes:
            module.training = mode

    with torch.no_grad(), always_run(restore):
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        for batch in batches if norms else ():
            if batch.size > 1:
                batch.to(device_of(model)).call(model)
        return sum(bool(norm.num_batches_tracked) for norm in norms)


def norms_with_statistics(model: nn.Module) -> Iterator[_BatchNorm]:
    """The BatchNorms of a model that keep running statistics; those that synchronize processes are left alone.

    >>> [norm.num_features for norm in norms_with_statistics(nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(4, track_running_stats=False)))]
    [3]
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return (module for module in model.modules() if isinstance(module, kinds) and module.running_mean is not None)


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance, and the number of batches."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    return norm.running_mean, norm.running_var, norm.num_batches_tracked
