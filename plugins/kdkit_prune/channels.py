"""Channels: remove whole units (channels, heads, feed-forward neurons), so that the model is really smaller.

Which units hang together is found by torch-pruning's dependency graph in convolutional nets (`convolutional`), and by the names
of the blocks in transformers (`transformers`); every cut is first tried on a copy (`trial`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import islice
from math import ceil
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from kdkit import patterns
from kdkit.context import Context
from kdkit.contract import Forecast, Needs, Stage, Trait, param
from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit_prune.groups import Anatomy, Group, Left

Plan = list[Tensor]
"""For each group the units to remove, (units,) bool."""


class Channels(Stage):
    """Remove whole channels, attention heads and feed-forward neurons, so that the model is really smaller.

    Li et al., 2017 (arXiv:1608.08710), over coupled layers as in DepGraph (Fang et al., 2023, arXiv:2301.12900). The model's
    outputs keep their shapes. What can't be removed is left alone and named in the notes; where nothing can be, it is an error.
    """

    id: ClassVar[str] = "prune.channels"
    needs: ClassVar[Needs] = Needs(example=True, packages=("torch_pruning",))
    requires: ClassVar = frozenset({Trait.FLOAT_WEIGHTS, Trait.FREE_STRUCTURE})
    forbids: ClassVar = frozenset({Trait.MASKS_PENDING, Trait.ADAPTERS_ATTACHED, Trait.FAKE_QUANT, Trait.PACKED_WEIGHTS, Trait.ONNX, Trait.ENCODED})

    ratio: float = param(0.5, "share of units to remove; what stays is rounded up, never to nothing", gt=0, lt=1, search=(0.1, 0.8))
    macs: float | None = param(None, "instead of --ratio: share of the multiply-adds to keep at most, such as 0.5", gt=0, lt=1)
    scope: Literal["layer", "global"] = param("layer", "the ratio holds in every layer, or over all layers, where they compete")
    importance: Literal["l1", "l2", "fpgm", "lamp", "bn-scale", "taylor", "random"] = param("l1", "what makes a unit worth keeping; taylor looks at the training data")
    what: tuple[Literal["channels", "heads", "groups", "ffn", "hidden"], ...] = param(
        ("channels", "heads", "ffn"), "kinds of units: channels of convolutional nets; heads, key/value groups, feed-forward and hidden width of transformers"
    )
    round_to: int = param(1, "keep a multiple of so many channels, where that still removes some; 8 or 16 suits most processors", ge=1)
    layers: tuple[str, ...] = param((), "patterns of the layers to prune; all that can be, when not said", refers="layers")
    skip: tuple[str, ...] = param((), "patterns of the layers to leave alone, with all that hangs on them", refers="layers")
    batches: int = param(16, "batches of training data that taylor looks at", ge=1, advanced=True)

    def needed(self) -> Needs:
        """Taylor importance needs training data; the others no data but an example."""
        return self.needs | Needs(train=True) if self.importance == "taylor" else self.needs

    def forecast(self, model: nn.Module, context: Context) -> Forecast:
        """Applied to a copy; widths do not depend on the data, so l1 stands in for taylor."""
        stage = self.model_copy(update={"importance": "l1"}) if self.importance == "taylor" else self
        return Forecast(stage.apply(model, context))

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Cut the model.

        Raises:
            KdError: nothing can be removed, with these options or at all.
        """
        from kdkit_prune.groups import cut
        from kdkit_prune.transformers import write_config

        batch = context.example[:2].to(next((weight.device for weight in model.parameters()), torch.device("cpu")))
        found = self._sound(model, batch, context)
        scores = self._scores(model, found, context)
        plan = self._plan(model, batch, found, scores, context)
        before = sum(weight.numel() for weight in model.parameters())
        cut(model, found.groups, plan)
        found.settle(model)
        self._report(found, plan, context)
        context.note(f"parameters: {before:,} to {sum(weight.numel() for weight in model.parameters()):,}")
        config = write_config(model, batch)
        if config:
            context.note(config)
        return model

    def _sound(self, model: nn.Module, batch: Batch, context: Context) -> Anatomy:
        """The groups that may be pruned: named by the options, and found to be removable."""
        from kdkit_prune import convolutional, transformers, trial

        if transformers.is_transformer(model):
            found = transformers.anatomy(model, batch, self.what)
        elif "channels" in self.what:
            found = convolutional.anatomy(model, batch)
        else:
            asked = " and ".join(self.what) or "nothing"
            raise KdError(f"prune channels: {type(model).__name__} has no transformer blocks that kdkit knows, and --what asks for {asked} only", "--what channels")
        named = self._named(model, found)
        tried = trial.sound(model, batch, named, tick=lambda: context.progress(0, 3, "trying cuts on a copy"))
        if not tried.groups:
            makers = _some(list(dict.fromkeys(name for group in found.groups for name in sorted(group.writers))))
            raise _nothing(model, tried).with_hints(f"units are made by {makers}" if makers else "it has no layer whose width is free")
        return tried

    def _named(self, model: nn.Module, found: Anatomy) -> Anatomy:
        """The groups that --layers and --skip leave."""
        wanted = set(patterns.match(model, self.layers)) if self.layers else None
        unwanted = set(patterns.match(model, self.skip))
        kept, left = [], list(found.left)
        for group in found.groups:
            writers = set(group.writers)
            spared = sorted(writers & unwanted)
            others = sorted(writers - wanted) if wanted is not None else []
            if spared:
                left.append(Left(group.kind, group.name, f"--skip names {_some(spared)}"))
            elif not others:
                kept.append(group)
            elif len(others) < len(writers):
                left.append(Left(group.kind, group.name, f"coupled with {_some(others)}, which --layers does not name"))
        return Anatomy(kept, left, found.settle)

    def _scores(self, model: nn.Module, found: Anatomy, context: Context) -> list[Tensor]:
        """The importance of every unit; groups that have none, such as those without BatchNorm for bn-scale, are dropped from `found`."""
        from kdkit_prune import importance
        from kdkit_prune.groups import weights_of

        context.progress(1, 3, f"importance {self.importance}")
        if self.importance == "taylor":
            return self._taylor(model, found, context)
        if self.importance == "random":
            generator = torch.Generator().manual_seed(context.seed)
            return [torch.rand(group.units, generator=generator) for group in found.groups]
        if self.importance == "bn-scale":
            scales = [(group, importance.bn_scale(model, group)) for group in found.groups]
            found.left += [Left(group.kind, group.name, "no BatchNorm behind it to go by") for group, scale in scales if scale is None]
            found.groups = [group for group, scale in scales if scale is not None]
            if not found.groups:
                raise _nothing(model, found).with_hints("--importance l1 goes by the weights themselves")
            return [scale for _, scale in scales if scale is not None]
        scores = [importance.MAGNITUDES[self.importance](weights_of(model, group).float()).cpu() for group in found.groups]
        return [score / score.mean().clamp(min=1e-30) for score in scores] if self.importance in importance.RELATIVE else scores

    def _taylor(self, model: nn.Module, found: Anatomy, context: Context) -> list[Tensor]:
        from kdkit_prune.convolutional import differentiable
        from kdkit_prune.importance import taylor

        device = next(model.parameters()).device
        batches = (batch.to(device) for batch in islice(context.data("train").batches(), self.batches))
        with differentiable(model), torch.enable_grad():
            return taylor(model, found.groups, batches, context.task)

    def _plan(self, model: nn.Module, batch: Batch, found: Anatomy, scores: Sequence[Tensor], context: Context) -> Plan:
        """The units to remove at the ratio, or at the smallest ratio that meets --macs."""
        from kdkit_prune.selection import ratios, select, smallest

        def at(ratio: float) -> Plan:
            return select(found.groups, scores, ratio, self.scope, self.round_to)

        candidates = ratios(found.groups, self.scope)
        if self.macs is not None:
            return self._to_macs(model, batch[:1], found, at, candidates, context)
        plan = at(self.ratio)
        if any(bool(gone.any()) for gone in plan):
            return plan
        least = smallest(candidates, lambda ratio: any(bool(gone.any()) for gone in at(ratio)))
        if least is None:
            raise KdError(f"prune channels: keeping a multiple of {self.round_to} channels leaves nothing to remove", "a smaller --round-to", _sizes(found.groups))
        raise KdError(
            f"prune channels: --ratio {self.ratio:g} removes nothing" + (f" with --round-to {self.round_to}" if self.round_to > 1 else ""),
            f"the smallest ratio that does: --ratio {ceil(least * 1e4) / 1e4:g}",
            _sizes(found.groups),
        )

    def _to_macs(self, model: nn.Module, batch: Batch, found: Anatomy, at: Callable[[float], Plan], candidates: Sequence[float], context: Context) -> Plan:
        from kdkit.counting import count_macs
        from kdkit_prune.groups import cut
        from kdkit_prune.selection import smallest

        whole, target = count_macs(model, batch), self.macs or 1.0

        def share(ratio: float) -> float:
            context.progress(2, 3, f"counting at ratio {ratio:.3f}")
            twin = copy.deepcopy(model)
            cut(twin, found.groups, at(ratio))
            found.settle(twin)
            return count_macs(twin, batch) / whole

        ratio = smallest(candidates, lambda ratio: share(ratio) <= target)
        if ratio is None:
            most = share(candidates[-1]) if candidates else 1.0
            raise KdError(f"prune channels: --macs {target:g} can't be met; all that can be removed leaves {most:.3f} of the MACs", *_reasons(found)[:3])
        context.note(f"MACs: {share(ratio):.3f} of before, at ratio {ratio:.4f} (--macs {target:g})")
        return at(ratio)

    def _report(self, found: Anatomy, plan: Plan, context: Context) -> None:
        """Say what was removed from where, and what was left alone and why."""
        for kind in dict.fromkeys(group.kind for group in found.groups):
            here = [(group, int(gone.sum())) for group, gone in zip(found.groups, plan, strict=True) if group.kind == kind]
            removed, of = sum(count * group.width for group, count in here), sum(group.units * group.width for group, _ in here)
            context.note(f"{kind}: removed {removed} of {of} in {sum(count > 0 for _, count in here)} of {len(here)} places")
            untouched = [group.name for group, count in here if not count]
            if untouched:
                context.note(f"{kind}: nothing removed at this ratio from {_some(untouched)}")
        for reason in _reasons(found):
            context.note(reason)


def _nothing(model: nn.Module, found: Anatomy) -> KdError:
    return KdError(f"prune channels: nothing can be removed from {type(model).__name__}", *_reasons(found)[:6])


def _reasons(found: Anatomy) -> list[str]:
    """A line for each reason to leave something alone, with the places it holds for."""
    places: dict[tuple[str, str], list[str]] = {}
    for left in found.left:
        places.setdefault((left.kind, left.reason), []).append(left.name)
    return [f"left alone: {kind} of {_some(names)}: {reason}" for (kind, reason), names in places.items()]


def _sizes(groups: Sequence[Group]) -> str:
    widths = {kind: sorted({group.steps * group.width for group in groups if group.kind == kind}) for kind in dict.fromkeys(group.kind for group in groups)}
    return "widths: " + "; ".join(f"{kind} {', '.join(map(str, sizes))}" for kind, sizes in widths.items())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
