"""Gates: what a unit contributes to the outputs, seen on data at the layers that read it.

A gate multiplies a unit: 1 where it is kept, 0 where it goes. Its gradient for one item is Σ a·∂L/∂a, over the positions of the inputs a of
all layers that read the unit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kdkit import Batch, KdError, Task
from kdkit.models import device_of, evaluating
from kdkit_prune.convolutional import differentiable
from kdkit_prune.groups import Group, Part, axis_of, makes_units, tensors_of, weights_of

Scores = list[Tensor | None]
"""For each group the scores of its units, (units,), higher is worth more; None where it has no such score."""


def first_order(model: nn.Module, groups: Sequence[Group], batches: Iterable[Batch], task: Task) -> Scores:
    """The mean over items of the squared gradient of a unit's gate, for random directions of the outputs.

    L = Σ r·z, where r is 1 or -1 at random for each output z. The mean over r is Σ (∂z/∂gate)²: how far all outputs move, to first order, when
    the unit goes. The gradient of a loss, in its place, vanishes on items that the model has learned by heart. Squares are taken for each item,
    because gradients of a batch cancel: Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019 (arXiv:1906.10771), on gates.

    Raises:
        KdError: there were no batches, or an output is not finite.
    """
    totals: Scores = [None] * len(groups)
    items = 0
    for batch in _each(batches, model):
        with differentiable(model), torch.enable_grad(), _read_inputs(model, groups) as readings:
            direction = _random_direction(model, batch, task)
        slopes = torch.autograd.grad(direction, [reading.inputs for reading in readings], allow_unused=True)
        gates: dict[int, Tensor] = {}
        for reading, slope in zip(readings, slopes, strict=True):
            if slope is not None and (change := reading.by_unit(reading.inputs.detach() * slope, groups, batch.size)) is not None:
                gates[reading.group] = gates.get(reading.group, torch.zeros_like(change)) + change
        for index, gate in gates.items():
            totals[index] = _added(totals[index], gate.pow(2).sum(0))
        items += batch.size
    return [None if total is None else total / items for total in totals]


def activity(model: nn.Module, groups: Sequence[Group], batches: Iterable[Batch], task: Task) -> Scores:
    """The share of a unit's activations that are not zero; None for groups in which none is zero, as without a ReLU.

    1 - APoZ of Hu, Peng, Tai, Tang, "Network Trimming", 2016 (arXiv:1607.03250).

    Raises:
        KdError: there were no batches.
    """
    active: Scores = [None] * len(groups)
    seen: Scores = [None] * len(groups)
    for batch in _each(batches, model):
        with evaluating(model), _read_inputs(model, groups) as readings:
            batch.call(model)
        for reading in readings:
            for totals, values in ((active, (reading.inputs != 0).float()), (seen, torch.ones_like(reading.inputs))):
                if (found := reading.by_unit(values, groups, batch.size)) is not None:
                    totals[reading.group] = _added(totals[reading.group], found.sum(0))
    shares = [None if total is None or count is None else total / count for total, count in zip(active, seen, strict=True)]
    return [None if share is None or bool((share == 1).all()) else share for share in shares]


def curvature(model: nn.Module, groups: Sequence[Group], batches: Iterable[Batch], task: Task) -> Scores:
    """½ Σ h·w² over a unit's weights, where h is the diagonal of the Hessian of ½‖z - z₀‖², the squared distance of the outputs from the present ones.

    Optimal Brain Damage: LeCun, Denker, Solla, 1989. h = Σ (∂z/∂w)² over items and outputs, since the distance is least at present. For random
    signs r the square of the gradient of Σ r·z has this mean.

    Raises:
        KdError: there were no batches, or an output is not finite.
    """
    weights = list({id(tensor): tensor for group in groups for tensor, _, _ in tensors_of(model, group) if isinstance(tensor, nn.Parameter)}.values())
    hessian = {id(weight): torch.zeros_like(weight) for weight in weights}
    items = 0
    for batch in _each(batches, model):
        with differentiable(model), torch.enable_grad():
            slopes = torch.autograd.grad(_random_direction(model, batch, task), weights, allow_unused=True)
        for weight, slope in zip(weights, slopes, strict=True):
            if slope is not None:
                hessian[id(weight)] += slope.pow(2)
        items += batch.size
    saliency = {id(weight): hessian[id(weight)] * weight.detach().pow(2) / (2 * items) for weight in weights}
    return [weights_of(model, group, lambda weight: saliency[id(weight)]).sum(1).float().cpu() for group in groups]


class _Reading(NamedTuple):
    """What one layer read of a group: the group's number, the layer's part of it, its inputs and the dimension of their channels."""

    group: int
    part: Part
    inputs: Tensor
    dim: int

    def by_unit(self, values: Tensor, groups: Sequence[Group], items: int) -> Tensor | None:
        """Sums over positions and channels, (items, units), of values in the shape of the inputs; None where these are not sorted by items."""
        channels = values.movedim(self.dim, -1)
        if values.shape[0] % items or self.dim == 0 or channels.shape[-1] != len(self.part.owner):
            return None
        sums = channels.reshape(items, -1, channels.shape[-1]).sum(1).float()
        owned = (self.part.owner >= 0).to(sums.device)
        return sums.new_zeros(items, groups[self.group].units).index_add_(1, self.part.owner.to(sums.device)[owned], sums[:, owned])


@contextlib.contextmanager
def _read_inputs(model: nn.Module, groups: Sequence[Group]) -> Iterator[list[_Reading]]:
    """The inputs of all layers that read units of the groups, gathered during a forward; each layer reads a view of its own."""
    readings: list[_Reading] = []

    def hook(index: int, part: Part) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def read(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not args or not isinstance(args[0], Tensor) or (torch.is_grad_enabled() and not args[0].requires_grad):
                return None
            own = args[0].view_as(args[0])
            readings.append(_Reading(index, part, own, _channel_dim(layer, own)))
            return own, *args[1:]

        return read

    with ExitStack() as hooks:
        for index, group in enumerate(groups):
            for part in group.parts:
                layer = model.get_submodule(part.module)
                if makes_units(layer) and part.axis != axis_of(layer, "out"):
                    hooks.callback(layer.register_forward_pre_hook(hook(index, part)).remove)
        yield readings


def _channel_dim(layer: nn.Module, inputs: Tensor) -> int:
    return inputs.dim() - 1 - len(layer.kernel_size) if isinstance(layer, nn.modules.conv._ConvNd) else inputs.dim() - 1


def _each(batches: Iterable[Batch], model: nn.Module) -> Iterator[Batch]:
    device, done = device_of(model), 0
    for batch in batches:
        yield batch.to(device)
        done += 1
    if not done:
        raise KdError("prune channels: this importance got no batch", "%kd set --calibration {loader}")


def _random_direction(model: nn.Module, batch: Batch, task: Task) -> Tensor:
    """Σ r·z over the outputs z that the task evaluates, with random signs r."""
    outputs = [leaf.float() for leaf in tree_leaves(task.prediction(batch.call(model), batch)) if isinstance(leaf, Tensor) and leaf.requires_grad]
    total = torch.stack([((torch.rand_like(output) < 0.5) * 2.0 - 1.0).mul(output).sum() for output in outputs]).sum()
    if not bool(total.isfinite()):
        raise KdError("prune channels: the model's outputs on the calibration data hold infinities or NaN", "check the calibration batches, and the model, first")
    return total


def _added(total: Tensor | None, more: Tensor) -> Tensor:
    return more.cpu() if total is None else total + more.cpu()


OBSERVED: dict[str, tuple[Callable[..., Scores], str]] = {
    "first-order": (first_order, "no layer that reads it was reached by the calibration data"),
    "hessian": (curvature, ""),
    "activation": (activity, "none of its activations is ever zero, so that their zeros can't be counted"),
}
"""Importances that look at unlabelled data: the function, and why it has no score for a group."""
