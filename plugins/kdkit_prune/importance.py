"""Importance: scores of units; the units with the lowest scores are removed.

Every score is of shape (units,), higher is worth more. The weights of a unit are all that would go with it, those that write
it and those that read it, over all coupled layers (as in DepGraph, Fang et al., 2023): in a net with BatchNorm the scale of a
filter alone says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from kdkit import Batch, KdError, Task
from kdkit_prune.groups import Group, tensors_of, weights_of


def l1(weights: Tensor) -> Tensor:
    """Σ|w| of a unit's weights: (units, weights) -> (units,).

    Li, Kadav, Durdanovic, Samet, Graf, "Pruning Filters for Efficient ConvNets", 2017 (arXiv:1608.08710).

    >>> l1(torch.tensor([[1.0, -2.0], [0.0, 0.5]]))
    tensor([3.0000, 0.5000])
    """
    return weights.abs().sum(1)


def l2(weights: Tensor) -> Tensor:
    """√Σw² of a unit's weights: (units, weights) -> (units,).

    He, Kang, Dong, Fu, Yang, "Soft Filter Pruning", 2018 (arXiv:1808.06866).

    >>> l2(torch.tensor([[3.0, -4.0]]))
    tensor([5.])
    """
    return weights.norm(dim=1)


def fpgm(weights: Tensor) -> Tensor:
    """Σ_j ‖w_i - w_j‖: a unit near the geometric median can be replaced by the others. (units, weights) -> (units,).

    He, Liu, Wang, Hu, Yang, "Filter Pruning via Geometric Median", 2019 (arXiv:1811.00250).

    >>> fpgm(torch.tensor([[0.0], [1.0], [5.0]]))
    tensor([6., 5., 9.])
    """
    return torch.cdist(weights, weights, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def lamp(weights: Tensor) -> Tensor:
    """‖w_i‖² / Σ_{j: ‖w_j‖ ≥ ‖w_i‖} ‖w_j‖²: comparable over layers, and the strongest unit of a layer scores 1. (units, weights) -> (units,).

    Lee, Park, Mo, Ahn, Shin, "Layer-adaptive Sparsity for the Magnitude-based Pruning", 2021 (arXiv:2010.07611), for units.

    >>> lamp(torch.tensor([[1.0], [3.0], [2.0]]))
    tensor([0.0714, 1.0000, 0.3077])
    """
    squares = weights.pow(2).sum(1)
    order = squares.argsort()
    at_least = squares[order].flip(0).cumsum(0).flip(0)
    return torch.empty_like(squares).index_copy_(0, order, squares[order] / at_least.clamp(min=torch.finfo(squares.dtype).tiny))


MAGNITUDES: dict[str, Callable[[Tensor], Tensor]] = {"l1": l1, "l2": l2, "fpgm": fpgm, "lamp": lamp}
"""Scores that follow from the weights alone."""

RELATIVE = ("l1", "l2", "fpgm", "first-order", "hessian")
"""Scores whose size grows with the layer; over several layers they are compared in units of the layer's mean."""


def bn_scale(model: nn.Module, group: Group) -> Tensor | None:
    """|γ| of the BatchNorm behind a unit, the mean where there are several; None where there is none.

    Liu, Li, Shen, Huang, Yan, Zhang, "Learning Efficient Convolutional Networks through Network Slimming", 2017 (arXiv:1708.06519).
    """
    total, found = torch.zeros(group.units), torch.zeros(group.units)
    for part in group.parts:
        module = model.get_submodule(part.module)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            mine = part.owner >= 0
            total.index_add_(0, part.owner[mine], module.weight.detach().abs().float().cpu()[mine])
            found.index_add_(0, part.owner[mine], torch.ones(int(mine.sum())))
    return total / found if bool(found.all()) else None


def taylor(model: nn.Module, groups: Sequence[Group], batches: Iterable[Batch], task: Task) -> tuple[list[Tensor], float]:
    """(Σ g·w)² over a unit's weights, averaged over batches: the squared first-order change of the loss when the unit goes; and the mean loss.

    Molchanov, Mallya, Tyree, Frosio, Kautz, "Importance Estimation for Neural Network Pruning", 2019 (arXiv:1906.10771), equation 8.
    The model must be in eval mode with gradients allowed; no gradient is left on it.

    Raises:
        KdError: there were no batches, or the loss is not finite.
    """
    weights = list({id(tensor): tensor for group in groups for tensor, _, _ in tensors_of(model, group) if isinstance(tensor, nn.Parameter)}.values())
    scores, count, total = [torch.zeros(group.units) for group in groups], 0, 0.0
    for batch in batches:
        loss = task.losses(batch.call(model), batch).sum() / (task.divisor(batch) or 1)
        if not bool(loss.isfinite()):
            raise KdError(f"prune channels: the loss of batch {count} is {float(loss)}", "Taylor importance needs finite losses on the data")
        slopes = torch.autograd.grad(loss, weights, allow_unused=True)
        change = {id(weight): weight.detach() * (slope if slope is not None else 0.0) for weight, slope in zip(weights, slopes, strict=True)}
        for score, group in zip(scores, groups, strict=True):
            score += weights_of(model, group, lambda weight: change[id(weight)]).sum(1).float().cpu() ** 2  # noqa: B023 - used at once
        count, total = count + 1, total + float(loss.detach())
    if not count:
        raise KdError("prune channels: Taylor importance got no batch", "%kd set --train {loader}")
    return [score / count for score in scores], total / count
