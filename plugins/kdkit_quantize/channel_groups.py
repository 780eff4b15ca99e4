"""Channels that can be rescaled: the layers that make them and those that read them, from a traced graph.

A positive factor on a channel passes through ReLU, pooling and sums (they are homogeneous): divide where the channel is made, multiply where it is
read, and the outputs stay the same. A residual stream is one group of several makers and readers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from kdkit import Batch, KdError
from kdkit.models import evaluating

_CONVOLUTIONS = {f"conv{rank}d.default": rank + 2 for rank in (1, 2, 3)}
_HOMOGENEOUS = {
    f"{name}.default"
    for name in (
        "relu", "relu_", "dropout", "clone", "contiguous", "alias", "detach", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
        "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "prelu", "leaky_relu", "leaky_relu_",
    )
}  # fmt: skip
_RESHAPES = {"view.default", "reshape.default", "flatten.using_ints", "mean.dim", "squeeze.dim", "squeeze.dims"}


@dataclass(frozen=True)
class Maker:
    """A layer that makes channels, with the BatchNorm that follows it at once, if any."""

    layer: str
    norm: str = ""


@dataclass(frozen=True)
class Reader:
    """A layer that reads channels; each is `repeat` neighbouring features of it, as after a flattened image. `norm` follows it at once, if any."""

    layer: str
    repeat: int = 1
    norm: str = ""


@dataclass
class ChannelGroup:
    """Channels that several layers make or read together.

    Attributes:
        channels: how many.
        makers, readers: the layers.
        rectified: whether each of its values went through a ReLU.
        fixed: whether a factor would change the outputs.
    """

    channels: int
    makers: list[Maker] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    rectified: bool = False
    fixed: bool = False


@dataclass(frozen=True)
class _Channels:
    """The channels of a tensor: their group's number, their axis, and how many neighbours along it belong to one."""

    group: int
    axis: int
    repeat: int = 1


def channel_groups(model: nn.Module, batch: Batch) -> list[ChannelGroup]:
    """The groups of channels that can be rescaled, in the order of the graph.

    Args:
        model: plain convolutions, linear layers and BatchNorms count; it is traced in eval mode.
        batch: inputs.

    Raises:
        KdError: the model can't be traced.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> channel_groups(net, Batch((torch.zeros(2, 4),)))
    [ChannelGroup(channels=8, makers=[Maker(layer='0', norm='')], readers=[Reader(layer='2', repeat=1, norm='')], rectified=True, fixed=False)]
    """
    with evaluating(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters is raised
        try:
            program = torch.export.export(model, batch.args, dict(batch.kwargs), strict=False)
        except Exception as error:  # the errors of torch.export have no common base class
            raise KdError(f"{type(model).__name__} can't be traced into a graph: {error}", "a forward that branches on the values of tensors has no graph") from error
    walk = _Walk(model, program.graph_signature.inputs_to_parameters)
    for node in program.graph.nodes:
        walk.visit(node)
    return walk.found()


class _Walk:
    """Follows channels through a graph, node by node."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, str]) -> None:
        self.model, self.parameters = model, parameters
        self.groups: list[ChannelGroup] = []
        self.parent: list[int] = []
        self.channels: dict[Any, _Channels] = {}

    def found(self) -> list[ChannelGroup]:
        norms = {maker.layer: maker.norm for group in self.groups for maker in group.makers}
        roots = dict.fromkeys(self._root(number) for number in range(len(self.groups)))
        groups = [self.groups[number] for number in roots if self.groups[number].readers and not self.groups[number].fixed]
        return [replace(group, readers=[replace(reader, norm=norms[reader.layer]) for reader in group.readers]) for group in groups]

    def visit(self, node: Any) -> None:
        if node.op == "output":
            self._fix(node.all_input_nodes)
        if node.op != "call_function":
            return
        name = str(node.target).removeprefix("aten.")
        if name in _CONVOLUTIONS:
            self._layer(node, axis=1)
        elif name == "linear.default":
            self._layer(node, axis=node.args[0].meta["val"].dim() - 1)
        elif name == "batch_norm.default":
            self._norm(node)
        elif name in _HOMOGENEOUS:
            self._pass(node, rectifies=name.startswith("relu"))
        elif name in _RESHAPES:
            self._reshape(node)
        elif name in ("add.Tensor", "add_.Tensor") and all(isinstance(each, torch.fx.Node) for each in node.args) and not node.kwargs:
            self._sum(node)
        else:
            self._fix(node.all_input_nodes)

    def _layer(self, node: Any, axis: int) -> None:
        read, name = node.args[0], self._module_of(node, nn.Linear | nn.modules.conv._ConvNd)
        known = self.channels.get(read)
        if known is not None and (name is None or known.axis != axis):
            self._fix([read])
        elif known is not None and name is not None:
            self.groups[self._root(known.group)].readers.append(Reader(name, known.repeat))
        if name is not None:
            width = node.meta["val"].shape[axis]
            self.channels[node] = self._new(axis, ChannelGroup(int(width), [Maker(name)]))

    def _norm(self, node: Any) -> None:
        made, name = node.args[0], self._module_of(node, nn.modules.batchnorm._BatchNorm)
        known = self.channels.get(made)
        group = self.groups[self._root(known.group)] if known else None
        alone = group is not None and len(made.users) == 1 and len(group.makers) == 1 and not group.readers and not group.makers[0].norm and not group.rectified
        if name is None or group is None or known is None or known.repeat > 1 or not alone or self.model.get_submodule(name).running_var is None:
            self._fix([made])
            return
        group.makers[0] = Maker(group.makers[0].layer, name)
        self.channels[node] = known

    def _pass(self, node: Any, rectifies: bool) -> None:
        known = self.channels.get(node.args[0])
        self._fix(node.all_input_nodes[1:])
        if known is not None:
            self.channels[node] = known
            group = self.groups[self._root(known.group)]
            if rectifies:
                group.rectified |= len(node.args[0].users) == 1 and not group.readers
            elif str(node.target).startswith("aten.avg_pool"):
                group.rectified = False  # its padding counts as zeros

    def _reshape(self, node: Any) -> None:
        known, before, after = self.channels.get(node.args[0]), node.args[0].meta["val"].shape, node.meta["val"].shape
        if known is None:
            return
        axes = known.axis == 1 and len(after) >= 2 and after[0] == before[0]
        averaged = str(node.target).startswith("aten.mean") and 1 not in _axes(node.args[1], len(before))
        if axes and after[1] == before[1] and (averaged or (math.prod(before[2:]) == 1 and len(after) == 2)):
            self.channels[node] = known
        elif axes and len(after) == 2 and known.repeat == 1 and after[1] == math.prod(before[1:]):
            self.channels[node] = _Channels(known.group, 1, int(after[1] // before[1]))
        else:
            self._fix([node.args[0]])

    def _sum(self, node: Any) -> None:
        one, other = (self.channels.get(each) for each in node.args)
        shapes = {tuple(each.meta["val"].shape) for each in node.args}
        if one is None or other is None or (one.axis, one.repeat) != (other.axis, other.repeat) or len(shapes) > 1:
            self._fix(node.args)
            return
        self._join(one.group, other.group)
        self.groups[self._root(one.group)].rectified = False  # a shift of the channels is added as often as they are
        self.channels[node] = one

    def _module_of(self, node: Any, kind: Any) -> str | None:
        """The module of a call, if all parameters of the call are its own and are used nowhere else."""
        given = [each for each in node.args[1:] if isinstance(each, torch.fx.Node) and each.name in self.parameters]
        owners = {self.parameters[each.name].rpartition(".")[0] for each in given}
        if not given or given[0] is not node.args[1] or len(owners) != 1 or any(len(each.users) > 1 for each in given):
            return None
        (owner,) = owners
        return owner if isinstance(self.model.get_submodule(owner), kind) else None

    def _new(self, axis: int, group: ChannelGroup) -> _Channels:
        self.groups.append(group)
        self.parent.append(len(self.parent))
        return _Channels(len(self.groups) - 1, axis)

    def _root(self, number: int) -> int:
        while self.parent[number] != number:
            number = self.parent[number]
        return number

    def _join(self, one: int, other: int) -> None:
        kept, gone = self._root(one), self._root(other)
        if kept != gone:
            target, source = self.groups[kept], self.groups[gone]
            target.makers += source.makers
            target.readers += source.readers
            target.fixed |= source.fixed
            target.rectified = False
            self.parent[gone] = kept

    def _fix(self, nodes: Iterable[Any]) -> None:
        for node in nodes:
            if node in self.channels:
                self.groups[self._root(self.channels[node].group)].fixed = True


def _axes(dims: Any, rank: int) -> set[int]:
    return {int(each) % rank for each in (dims if isinstance(dims, list | tuple) else [dims])}
