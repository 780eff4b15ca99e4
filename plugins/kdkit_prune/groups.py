"""Coupled groups: units of a network that can only be removed together, and their removal.

A unit is a channel, an attention head, a feed-forward neuron. Removing it means removing positions along certain widths of
several modules at once: the filter that writes it, its normalization, the columns that read it (Fang et al., "DepGraph:
Towards Any Structural Pruning", 2023, arXiv:2301.12900). A `Group` says which positions of which widths belong to which of
its units; how it was found (a traced graph, the names of a transformer's blocks) no longer matters here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import Literal

import torch
from torch import Tensor, nn

from kdkit import KdError


class NotPrunable(Exception):
    """A reason to leave units as they are, in words for the user."""


NOT_FOLLOWED = "its units are also used in a way that can't be followed (a shuffle, pad, slice, reshape or statistic over them)"
"""The reason to leave units alone where a cut, or the search for what hangs on them, goes wrong."""

Kind = Literal["channels", "heads", "groups", "ffn", "hidden"]
Side = Literal["out", "in"]


@dataclass(frozen=True)
class Axis:
    """One width of a module: its tensors with the dimension along which the width runs, and the attributes that state it."""

    tensors: tuple[tuple[str, int], ...]
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """What one module has of a group.

    Attributes:
        module: its name in the model; the module that holds the tensors.
        axis: which of its widths.
        owner: (width,) the unit to which each position belongs, -1 where it belongs to none of this group.
        writes: the module makes the units, rather than reading or rescaling them.
    """

    module: str
    axis: Axis
    owner: Tensor
    writes: bool = False


@dataclass(frozen=True)
class Group:
    """Units that exist in several modules at once.

    Attributes:
        name: of the module that stands for it.
        kind: what a unit is.
        units: how many there are.
        parts: where they are.
        width: channels that one unit counts for.
        bundles: the units lie in so many consecutive bundles, and each must lose equally many.
    """

    name: str
    kind: Kind
    units: int
    parts: tuple[Part, ...]
    width: int = 1
    bundles: int = 1

    @property
    def steps(self) -> int:
        """How many removal steps the group allows; each removes one unit of every bundle."""
        return self.units // self.bundles

    def step(self, round_to: int) -> int:
        """Steps by which the group may shrink so that its width stays a multiple of `round_to`; heads are never rounded."""
        if self.kind in ("heads", "groups"):
            return 1
        return round_to // gcd(round_to, self.width * self.bundles)

    @property
    def writers(self) -> list[str]:
        """Names of the modules that make the units."""
        return list(dict.fromkeys(part.module for part in self.parts if part.writes))


@dataclass(frozen=True)
class Excluded:
    """Units that are kept: their kind, place, and the reason."""

    kind: str
    name: str
    reason: str


@dataclass
class PruningPlanScope:
    """What can be removed from a model, what is kept, and what must be synchronised after a cut."""

    groups: list[Group]
    left: list[Excluded] = field(default_factory=list)
    sync_attributes: Callable[[nn.Module], None] = lambda model: None


def axis_of(module: nn.Module, side: Side) -> Axis:
    """The width that `module` reads ("in") or makes ("out"); for what works channel by channel both are the same.

    Raises:
        NotPrunable: it is of a kind that can't be cut.

    >>> axis_of(nn.Linear(2, 3), "in")
    Axis(tensors=(('weight', 1),), attributes=('in_features',))
    """
    if isinstance(module, nn.modules.conv._ConvNd):
        return _convolution_axis(module, side)
    if isinstance(module, nn.Linear):
        return Axis((("weight", 0), ("bias", 0)), ("out_features",)) if side == "out" else Axis((("weight", 1),), ("in_features",))
    if is_conv1d(module):
        return Axis((("weight", 1), ("bias", 0)), ("nf",)) if side == "out" else Axis((("weight", 0),), ("nx",))
    if isinstance(module, nn.Embedding) and side == "out":
        return Axis((("weight", 1),), ("embedding_dim",))
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return Axis((("weight", 0), ("bias", 0), ("running_mean", 0), ("running_var", 0)), ("num_features",))
    if isinstance(module, nn.GroupNorm):
        return Axis((("weight", 0), ("bias", 0)), ("num_channels",))
    if isinstance(module, nn.PReLU):
        return Axis((("weight", 0),), ("num_parameters",))
    if normalizes_across(module):
        return Axis((("weight", 0), ("bias", 0)), ("normalized_shape",) if hasattr(module, "normalized_shape") else ())
    raise NotPrunable(f"{type(module).__name__} is left alone")


def _convolution_axis(module: nn.modules.conv._ConvNd, side: Side) -> Axis:
    if module.groups == module.in_channels == module.out_channels > 1:
        return Axis((("weight", 0), ("bias", 0)), ("in_channels", "out_channels", "groups"))
    out, into = (1, 0) if module.transposed else (0, 1)
    return Axis((("weight", out), ("bias", 0)), ("out_channels",)) if side == "out" else Axis((("weight", into),), ("in_channels",))


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is the transposed linear layer of GPT-2."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")


def normalizes_across(module: nn.Module) -> bool:
    """Whether it takes statistics over the units themselves, as LayerNorm and RMSNorm do over their last, single dimension."""
    named = isinstance(module, nn.LayerNorm) or type(module).__name__.endswith(("RMSNorm", "LayerNorm"))
    weight = getattr(module, "weight", None)
    return named and isinstance(weight, Tensor) and weight.dim() == 1


def part(model: nn.Module, module: str, side: Side, owner: Tensor) -> Part:
    """A part over one side of a module named `module`."""
    return Part(module, axis_of(model.get_submodule(module), side), owner, writes=side == "out" and makes_units(model.get_submodule(module)))


def makes_units(module: nn.Module) -> bool:
    """Whether its outputs are new units, not its inputs rescaled."""
    depthwise = isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.in_channels == module.out_channels > 1
    return (isinstance(module, nn.Linear | nn.modules.conv._ConvNd | nn.Embedding) and not depthwise) or is_conv1d(module)


def tensors_of(model: nn.Module, group: Group) -> Iterator[tuple[Tensor, int, Tensor]]:
    """Each tensor of a group once, as (tensor, dimension, owner of each position along it)."""
    seen = set()
    for each in group.parts:
        holder = model.get_submodule(each.module)
        for name, dim in each.axis.tensors:
            tensor = getattr(holder, name, None)
            if isinstance(tensor, Tensor) and tensor.dim() and (id(tensor), dim) not in seen:
                seen.add((id(tensor), dim))
                yield tensor, dim, _fit(each.owner, tensor.shape[dim])


def weights_of(model: nn.Module, group: Group, value: Callable[[Tensor], Tensor] = lambda weight: weight) -> Tensor:
    """All weights that go when a unit goes, matrices and kernels only: (units, weights of a unit).

    Args:
        value: what to take in place of each weight tensor, such as its gradient; of the same shape.
    """
    rows = []
    for tensor, dim, owner in tensors_of(model, group):
        if tensor.dim() > 1:
            positions = torch.argsort(owner, stable=True)[int((owner < 0).sum()) :]
            rows.append(value(tensor).detach().movedim(dim, 0)[positions.to(tensor.device)].reshape(group.units, -1))
    return torch.cat(rows, 1)


def cut(model: nn.Module, groups: Sequence[Group], gone: Sequence[Tensor]) -> None:
    """Remove units from the model, in place. Tied tensors stay tied; gradients are dropped.

    Args:
        gone: for each group, (units,) bool: the units to remove.
    """
    kept = _kept(groups, gone)
    holders = _holders(model)
    for tensor, cuts in _tensor_cuts(model, kept):
        small = tensor.detach()
        for dim, keep in cuts.items():
            small = small.index_select(dim, keep.nonzero().flatten().to(small.device))
        small = small.contiguous()
        for owner, name in holders[id(tensor)]:
            if name in owner._parameters:
                owner._parameters[name] = small = small if isinstance(small, nn.Parameter) else nn.Parameter(small, tensor.requires_grad)
            else:
                owner._buffers[name] = small
    for (module, axis), keep in kept.items():
        for attribute in axis.attributes:
            width = int(keep.sum())
            setattr(model.get_submodule(module), attribute, (width,) if attribute == "normalized_shape" else width)
    for weight in model.parameters():
        weight.grad = None


def zero_units(model: nn.Module, groups: Sequence[Group], gone: Sequence[Tensor]) -> None:
    """Set every weight of the given units to zero, in place: the model then computes what it will after `cut`.

    Where a normalization takes statistics over the units, it would still count the zeros; see `kdkit_prune.trial_cut`.
    """
    with torch.no_grad():
        for tensor, cuts in _tensor_cuts(model, _kept(groups, gone)):
            if isinstance(tensor, nn.Parameter):
                for dim, keep in cuts.items():
                    tensor.index_fill_(dim, (~keep).nonzero().flatten().to(tensor.device), 0)


def lost(group: Group, gone: Tensor) -> dict[tuple[str, Axis], Tensor]:
    """The positions that go, (width,) bool, for each width of the group."""
    return {(each.module, each.axis): gone[each.owner.clamp(min=0)] & (each.owner >= 0) for each in group.parts}


def _kept(groups: Sequence[Group], gone: Sequence[Tensor]) -> dict[tuple[str, Axis], Tensor]:
    kept: dict[tuple[str, Axis], Tensor] = {}
    for group, units in zip(groups, gone, strict=True):
        for each in group.parts:
            place = (each.module, each.axis)
            going = units[each.owner.clamp(min=0)] & (each.owner >= 0)
            kept[place] = kept.get(place, torch.ones_like(going)) & ~going
    return {place: keep for place, keep in kept.items() if not keep.all()}


def _tensor_cuts(model: nn.Module, kept: dict[tuple[str, Axis], Tensor]) -> list[tuple[Tensor, dict[int, Tensor]]]:
    found: dict[int, tuple[Tensor, dict[int, Tensor]]] = {}
    for (module, axis), keep in kept.items():
        for name, dim in axis.tensors:
            tensor = getattr(model.get_submodule(module), name, None)
            if isinstance(tensor, Tensor) and tensor.dim():
                fitting = _fit(keep, tensor.shape[dim])
                cuts = found.setdefault(id(tensor), (tensor, {}))[1]
                if dim in cuts and not torch.equal(cuts[dim], fitting):
                    raise KdError(f"{module}.{name} is tied to another weight that keeps other units", "keep one of them with --skip")
                cuts[dim] = fitting
    return list(found.values())


def _fit(along: Tensor, size: int) -> Tensor:
    """A grouped convolution's tensor spans one of its groups only, and all its groups are alike."""
    rows = along.reshape(-1, size)
    if not (rows == rows[:1]).all():
        raise KdError("a grouped convolution would lose different channels in different groups")
    return rows[0]


def _holders(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                holders.setdefault(id(tensor), []).append((module, name))
    return holders
