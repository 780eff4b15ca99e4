"""Neurons: remove units that provably add nothing to the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdkit import Batch, Context, Needs, Stage, Task, Trait, param
from kdkit.models import device_of, select_layers
from kdkit_prune import convolutional, transformers, trial_cut
from kdkit_prune.gates import activity
from kdkit_prune.groups import Group, Part, PruningPlanScope, axis_of, cut, makes_units, normalizes_across
from kdkit_prune.transformer_sizes import write_config

KINDS = ("channels", "heads", "groups", "ffn")
"""Kinds of units that can go without a change: the hidden width takes part in the statistics of norms."""


class Neurons(Stage):
    """Remove dead units: those that no layer reads, and those that are always zero. The outputs stay the same.

    A unit is not read where all weights on it are zero. It is always zero where what writes it is constant, because its weights or the scale
    of its BatchNorm are zero, and that constant is zero at the layers that read it. Sparse weights leave such units behind: `prune weights`,
    `prune fold`, then this stage. Units that go can leave others dead; the search goes on until there are none.
    """

    id: ClassVar[str] = "prune.neurons"
    known_as: ClassVar[tuple[str, ...]] = ("dead neurons", "dead units", "dead channels")
    needs: ClassVar[Needs] = Needs(example=True, packages=("torch_pruning",))
    requires: ClassVar[Iterable[str]] = {Trait.FLOAT_WEIGHTS, Trait.FREE_STRUCTURE}
    forbids: ClassVar[Iterable[str]] = {Trait.ADAPTERS_ATTACHED, Trait.FAKE_QUANT, Trait.ONNX}
    keeps_values: ClassVar[bool] = True
    may_change_nothing: ClassVar[bool] = True

    skip: tuple[str, ...] = param((), "patterns of the layers to keep, together with the layers coupled to them", names="layers")

    def check(self, model: nn.Module, context: Context) -> Iterable[str]:
        """Layers that don't exist."""
        select_layers(model, self.skip)
        return ()

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Remove the dead units."""
        batch = context.example[:2].to(device_of(model))
        removed: dict[str, int] = {}
        while (dead := self._dead(model, batch, context))[0].groups:
            scope, gone = dead
            cut(model, scope.groups, [gone[group.name] for group in scope.groups])
            scope.sync_attributes(model)
            for group in scope.groups:
                removed[group.name] = removed.get(group.name, 0) + int(gone[group.name].sum())
        for name, count in removed.items():
            context.note(f"{name}: {count} dead {'units' if count > 1 else 'unit'} removed")
        if not removed:
            context.note("no unit is dead")
        elif config := write_config(model, batch):
            context.note(config)
        return model

    def _dead(self, model: nn.Module, batch: Batch, context: Context) -> tuple[PruningPlanScope, dict[str, Tensor]]:
        """The groups with dead units that can be removed, and these units, (units,) bool, by the group's name."""
        known = transformers.anatomy(model, batch, KINDS) if transformers.is_transformer(model) else convolutional.anatomy(model, batch)
        spared = set(select_layers(model, self.skip))
        rewritable = trial_cut.rewritable(model, known)
        groups = [group for group in rewritable.groups if not spared & set(group.writers) and not _normalized(model, group)]
        gone = {group.name: dead for group, dead in zip(groups, dead_units(model, groups, batch, context.task), strict=True) if bool(dead.any())}
        tried = PruningPlanScope([group for group in groups if group.name in gone], [], known.sync_attributes)
        return trial_cut.sound(model, batch, tried, tick=context.check_cancelled), gone


def dead_units(model: nn.Module, groups: Sequence[Group], batch: Batch, task: Task) -> list[Tensor]:
    """The dead units of each group, (units,) bool; equally many of each bundle, and never all.

    Args:
        batch: on which constant units are seen to be zero where they are read.
    """
    seen = activity(model, groups, [batch], task)
    found = []
    for group, active in zip(groups, seen, strict=True):
        silent = _constant(model, group) & (active == 0) if active is not None else torch.zeros(group.units, dtype=torch.bool)
        found.append(_removable(group, _unread(model, group) | silent))
    return found


def _unread(model: nn.Module, group: Group) -> Tensor:
    """Units of which every layer that reads them has zeros only; none where no layer reads them."""
    readers = [part for part in group.parts if makes_units(model.get_submodule(part.module)) and part.axis != axis_of(model.get_submodule(part.module), "out")]
    return _all_zero(model, readers, group.units)


def _constant(model: nn.Module, group: Group) -> Tensor:
    """Units that depend on no input: zeros write them all, or scale them all."""
    writers = [part for part in group.parts if part.writes]
    norms = [part for part in group.parts if isinstance(norm := model.get_submodule(part.module), nn.modules.batchnorm._BatchNorm) and norm.affine]
    scaled = _all_zero(model, norms, group.units) if len(norms) >= len(writers) else torch.zeros(group.units, dtype=torch.bool)
    return _all_zero(model, writers, group.units) | scaled


def _all_zero(model: nn.Module, parts: Sequence[Part], units: int) -> Tensor:
    """Units whose weights are zero in all these parts, and that are in each of them; biases don't count."""
    dead = torch.full((units,), bool(parts))
    for part in parts:
        dim = dict(part.axis.tensors)["weight"]
        weight = model.get_parameter(f"{part.module}.weight".lstrip(".")).detach()
        alive = (weight.movedim(dim, 0).flatten(1) != 0).any(1) if weight.dim() > 1 else weight != 0
        owner = part.owner.reshape(-1, len(alive))[0]
        here = torch.zeros(units, dtype=torch.bool).index_fill_(0, owner[owner >= 0], True)
        dead &= here & ~torch.zeros(units, dtype=torch.bool).index_fill_(0, owner[(owner >= 0) & alive.cpu()], True)
    return dead


def _removable(group: Group, dead: Tensor) -> Tensor:
    """As many dead units as can go: the same number of each bundle, and one unit of each stays."""
    bundles = dead.reshape(group.bundles, -1)
    count = min(int(bundles.sum(1).min()), bundles.shape[1] - 1)
    return (bundles & (bundles.cumsum(1) <= count)).flatten()


def _normalized(model: nn.Module, group: Group) -> bool:
    """Whether a norm takes statistics over the units, which zeros take part in."""
    modules = [model.get_submodule(part.module) for part in group.parts]
    return any(isinstance(module, nn.GroupNorm) or normalizes_across(module) for module in modules)
