"""Channels: remove units (channels, heads, feed-forward neurons), so that the model becomes smaller.

Which units hang together is found by torch-pruning's dependency graph in convolutional nets (`convolutional`), and by the names
of the blocks in transformers (`transformers`); every cut is first tried on a copy (`trial`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from math import ceil
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdkit import Batch, Context, Forecast, KdError, Needs, Stage, Trait, param
from kdkit.measurement import count_macs
from kdkit.models import private_copy, select_layers
from kdkit_prune import convolutional, importance, transformers, trial_cut
from kdkit_prune.damage import Damage, some_items
from kdkit_prune.gates import OBSERVED, Scores
from kdkit_prune.groups import Excluded, Group, PruningPlanScope, cut, weights_of
from kdkit_prune.latency import time_share
from kdkit_prune.norm_statistics import norms_with_statistics, reestimate
from kdkit_prune.reinitialization import reinitialize
from kdkit_prune.selection import ratios, select, smallest
from kdkit_prune.sensitivity import Plan, allocate
from kdkit_prune.transformer_sizes import write_config

NAMES = {"macs": "MACs", "latency": "latency", "ratio": "units"}
"""What the options that state how much to keep, or to remove, are about."""

ITEMS = 256
"""Items on which --scope sensitivity compares outputs."""

MEMORIZED = 0.05
"""A mean loss below which its gradients say little about units."""


_latest: dict[Any, PruningPlanScope] = {}
"""What may be cut from the structure of the latest forecast, since a forecast is made again whenever an option changes."""


def _structure(model: nn.Module) -> tuple[Any, ...]:
    """What determines which groups a model has: its modules, and the shapes of its weights."""
    return type(model), *((name, type(module), str(module.extra_repr())) for name, module in model.named_modules()), *(weight.shape for weight in model.parameters())


def _two_items(model: nn.Module, context: Context) -> Batch:
    """Two items of the example, on the model's device."""
    return context.example[:2].to(next((weight.device for weight in model.parameters()), torch.device("cpu")))


class Channels(Stage):
    """Remove channels, attention heads and feed-forward neurons, so that the model becomes smaller.

    Li et al., 2017 (arXiv:1608.08710), over coupled layers as in DepGraph (Fang et al., 2023, arXiv:2301.12900). The model's
    outputs keep their shapes. What can't be removed is left alone and named in the notes; where nothing can be, it is an error.
    """

    id: ClassVar[str] = "prune.channels"
    known_as: ClassVar[tuple[str, ...]] = ("structured pruning", "filter pruning", "channel pruning", "DepGraph")
    needs: ClassVar[Needs] = Needs(example=True, packages=("torch_pruning",))
    requires: ClassVar = frozenset({Trait.FLOAT_WEIGHTS, Trait.FREE_STRUCTURE})
    forbids: ClassVar = frozenset({Trait.ADAPTERS_ATTACHED, Trait.FAKE_QUANT, Trait.ONNX})

    ratio: float = param(
        0.5, "share of units to remove; the number of remaining units is rounded up, and at least one remains", gt=0, lt=1, share="removed", search=(0.1, 0.8), main=True
    )
    macs: float | None = param(None, "instead of --ratio: the largest share of the multiply-adds to keep, such as 0.5", gt=0, lt=1, share="kept")
    latency: float | None = param(None, "instead of --ratio: the largest share of the time for one item to keep, in torch on this machine", gt=0, lt=1, share="kept")
    scope: Literal["layer", "global", "sensitivity"] = param(
        "layer",
        "apply the ratio to each layer, or globally, where the units of all layers compete; "
        "sensitivity: measure on calibration data what each layer's units cost, and remove most where it saves most for it",
    )
    importance: Literal["l1", "l2", "fpgm", "lamp", "bn-scale", "first-order", "hessian", "activation", "taylor", "random"] = param(
        "l1",
        "how to score units; first-order, hessian and activation use calibration data, taylor the loss on training data; first-order keeps most accuracy",
        main=True,
    )
    what: tuple[Literal["channels", "heads", "groups", "ffn", "hidden"], ...] = param(
        ("channels", "heads", "ffn"), "kinds of units: channels of convolutional nets; heads, key/value groups, feed-forward and hidden width of transformers"
    )
    round_to: int = param(1, "keep a multiple of this many channels, where that still removes some; 8 or 16 suits most processors", ge=1)
    layers: tuple[str, ...] = param((), "patterns of the layers to prune; default: all prunable layers", names="layers")
    skip: tuple[str, ...] = param((), "patterns of the layers to keep, together with the layers coupled to them", names="layers")
    batches: int = param(16, "batches of data for the importances that use some", ge=1, advanced=True)
    statistics: int = param(
        8, "batches on which BatchNorm statistics are estimated again after the cut, where the session has calibration or training data; 0 leaves them", ge=0
    )
    reinit: bool = param(False, "give all weights new random values afterwards, to compare the pruned structure trained from scratch (Liu et al., 2019)", advanced=True)

    def required_inputs(self) -> Needs:
        """Some importances need data; the others need only an example."""
        return self.needs | Needs(train=self.importance == "taylor", calibration=self.importance in OBSERVED or self.scope == "sensitivity")

    def optional_inputs(self) -> Needs:
        """Data on which BatchNorm statistics are estimated again."""
        return Needs(calibration=self.statistics > 0)

    def check(self, model: nn.Module, context: Context) -> Iterable[str]:
        """Options that exclude each other, and whether taylor importance has a loss to differentiate."""
        if self.macs is not None and self.latency is not None:
            yield "prune channels: --macs and --latency each state how much to keep; give one of them"
        if self.importance == "taylor" and context.task.loss_from_model:
            yield f"--importance taylor needs a loss of the outputs, and {type(model).__name__} gives its losses only in training; use --importance l1"

    def forecast(self, model: nn.Module, context: Context) -> Forecast:
        """Apply the stage to a copy, to what the forecast before found that may be cut.

        Widths at a ratio do not depend on the data, so l1 replaces importances that use some.
        """
        importance = "l1" if self.importance in ("taylor", *OBSERVED) else self.importance
        scope = "layer" if self.scope == "sensitivity" else self.scope
        stage = self.model_copy(update={"importance": importance, "statistics": 0, "scope": scope})
        batch, key = _two_items(model, context), (_structure(model), self.what, self.layers, self.skip)
        found = _latest.get(key)
        if found is None:
            found = self._sound(model, batch, context)
            _latest.clear()
            _latest[key] = found
        return Forecast(stage._cut(model, batch, found, context))

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Cut the model.

        Raises:
            KdError: nothing can be removed, with these options or at all.
        """
        batch = _two_items(model, context)
        return self._cut(model, batch, self._sound(model, batch, context), context)

    def _cut(self, model: nn.Module, batch: Batch, found: PruningPlanScope, context: Context) -> nn.Module:
        found = PruningPlanScope(list(found.groups), list(found.left), found.sync_attributes)  # scores may leave some out, and forecasts keep what was found
        scores = self._scores(model, found, context)
        plan = self._plan(model, batch, found, scores, context)
        before = sum(weight.numel() for weight in model.parameters())
        cut(model, found.groups, plan)
        found.sync_attributes(model)
        if self.reinit:
            reinitialize(model, context.seed)
        else:
            self._reestimate(model, context)
        self._report(found, plan, context)
        context.note(f"parameters: {before:,} to {sum(weight.numel() for weight in model.parameters()):,}")
        config = write_config(model, batch)
        if config:
            context.note(config)
        return model

    def _sound(self, model: nn.Module, batch: Batch, context: Context) -> PruningPlanScope:
        """The groups that may be pruned: selected by the options, and verified to be removable."""
        if transformers.is_transformer(model):
            found = transformers.anatomy(model, batch, self.what)
        elif "channels" in self.what:
            found = convolutional.anatomy(model, batch)
        else:
            asked = " and ".join(self.what) or "nothing"
            raise KdError(f"prune channels: {type(model).__name__} has no transformer blocks that kdkit knows, and --what asks for {asked} only", "--what channels")
        named = self._named(model, trial_cut.rewritable(model, found))
        tried = trial_cut.sound(model, batch, named, tick=lambda: context.progress(0, 3, "trying cuts on a copy"))
        if not tried.groups:
            makers = _some(list(dict.fromkeys(name for group in found.groups for name in sorted(group.writers))))
            raise _nothing(model, tried).with_hints(f"units are made by {makers}" if makers else "it has no layer whose width is free")
        return tried

    def _named(self, model: nn.Module, found: PruningPlanScope) -> PruningPlanScope:
        """The groups that --layers and --skip select."""
        wanted = set(select_layers(model, self.layers)) if self.layers else None
        unwanted = set(select_layers(model, self.skip))
        kept, left = [], list(found.left)
        for group in found.groups:
            writers = set(group.writers)
            spared = sorted(writers & unwanted)
            others = sorted(writers - wanted) if wanted is not None else []
            if spared:
                left.append(Excluded(group.kind, group.name, f"--skip names {_some(spared)}"))
            elif not others:
                kept.append(group)
            elif len(others) < len(writers):
                left.append(Excluded(group.kind, group.name, f"coupled with {_some(others)}, which --layers does not name"))
        return PruningPlanScope(kept, left, found.sync_attributes)

    def _scores(self, model: nn.Module, found: PruningPlanScope, context: Context) -> list[Tensor]:
        """The importance of every unit; drops groups without one from `found`, such as groups without BatchNorm for bn-scale."""
        context.progress(1, 3, f"importance {self.importance}")
        if self.importance == "taylor":
            return self._taylor(model, found, context)
        if self.importance == "random":
            generator = torch.Generator().manual_seed(context.seed)
            return [torch.rand(group.units, generator=generator) for group in found.groups]
        scores, lacking = self._possible_scores(model, found, context)
        found.left += [Excluded(group.kind, group.name, lacking) for group, score in zip(found.groups, scores, strict=True) if score is None]
        found.groups = [group for group, score in zip(found.groups, scores, strict=True) if score is not None]
        if not found.groups:
            raise _nothing(model, found).with_hints("--importance l1 uses the weights themselves")
        known = [score.cpu() for score in scores if score is not None]
        return [score / score.mean().clamp(min=1e-30) for score in known] if self.importance in importance.RELATIVE else known

    def _possible_scores(self, model: nn.Module, found: PruningPlanScope, context: Context) -> tuple[Scores, str]:
        """The scores of each group, None where there are none, and the reason for that."""
        if self.importance == "bn-scale":
            return [importance.bn_scale(model, group) for group in found.groups], "no BatchNorm follows it"
        if self.importance in OBSERVED:
            observe, reason = OBSERVED[self.importance]
            return observe(model, found.groups, context.calibration(self.batches), context.task), reason
        return [importance.MAGNITUDES[self.importance](weights_of(model, group).float()) for group in found.groups], ""

    def _taylor(self, model: nn.Module, found: PruningPlanScope, context: Context) -> list[Tensor]:
        device = next(model.parameters()).device
        batches = (batch.to(device) for batch in islice(context.data("train").batches(), self.batches))
        with convolutional.differentiable(model), torch.enable_grad():
            scores, loss = importance.taylor(model, found.groups, batches, context.task)
        if loss < MEMORIZED:
            context.note(
                f"the mean loss is {loss:.2g}: the model has learned this data by heart, so gradients of its loss are noise; --importance first-order needs no loss"
            )
        return scores

    def _plan(self, model: nn.Module, batch: Batch, found: PruningPlanScope, scores: Sequence[Tensor], context: Context) -> Plan:
        """The units to remove at the ratio, or at the smallest ratio that meets --macs or --latency."""
        if self.scope == "sensitivity":
            return self._by_sensitivity(model, batch, found, scores, context)
        scope = self.scope

        def at(ratio: float) -> Plan:
            return select(found.groups, scores, ratio, scope, self.round_to)

        candidates = ratios(found.groups, scope)
        if self._target is not None:
            return self._to_target(model, batch[:1], found, at, candidates, context)
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

    @property
    def _target(self) -> tuple[str, float] | None:
        """The option that states how much to keep, and its value; None where the ratio does."""
        given = ((name, getattr(self, name)) for name in ("macs", "latency"))
        return next(((name, value) for name, value in given if value is not None), None)

    def _cost(self, model: nn.Module, batch: Batch, found: PruningPlanScope) -> Callable[[Plan], float]:
        """From a plan to the share of the multiply-adds, of the latency or of the units that it keeps."""
        if self._target is None:
            total = sum(group.units * group.width for group in found.groups)
            return lambda plan: 1 - sum(int(gone.sum()) * group.width for group, gone in zip(found.groups, plan, strict=True)) / total
        if self.latency is not None:
            return lambda plan: time_share(_cut_copy(model, found, plan), model, batch[:1])
        whole = count_macs(model, batch[:1])
        return lambda plan: count_macs(_cut_copy(model, found, plan), batch[:1]) / whole

    def _to_target(self, model: nn.Module, batch: Batch, found: PruningPlanScope, at: Callable[[float], Plan], candidates: Sequence[float], context: Context) -> Plan:
        assert self._target is not None
        (option, target), cost = self._target, self._cost(model, batch, found)

        def share(ratio: float) -> float:
            context.progress(2, 3, f"{NAMES[option]} at ratio {ratio:.3f}")
            return cost(at(ratio))

        ratio = smallest(candidates, lambda ratio: share(ratio) <= target)
        if ratio is None:
            most = share(candidates[-1]) if candidates else 1.0
            raise KdError(f"prune channels: --{option} {target:g} can't be reached; all possible removals leave {most:.3f} of the {NAMES[option]}", *_reasons(found)[:3])
        context.note(f"{NAMES[option]}: {share(ratio):.3f} of before, at ratio {ratio:.4f} (--{option} {target:g})")
        return at(ratio)

    def _by_sensitivity(self, model: nn.Module, batch: Batch, found: PruningPlanScope, scores: Sequence[Tensor], context: Context) -> Plan:
        option, target = self._target or ("ratio", 1 - self.ratio)
        cost = self._cost(model, batch, found)
        damage = Damage(model, some_items(context.calibration(), ITEMS, model), context.task, statistics=self.statistics > 0)
        plan = allocate(
            found.groups,
            scores,
            self.round_to,
            target,
            cost,
            lambda plan: damage.of(_cut_copy(model, found, plan)),
            lambda: context.progress(2, 3, "measuring what units cost"),
        )
        if plan is None:
            raise KdError(
                f"prune channels: --scope sensitivity does not reach --{option} {getattr(self, option):g}: a layer loses at most three quarters of its units",
                "--scope global",
            )
        context.note(f"{NAMES[option]}: {cost(plan):.3f} of before, by sensitivity (--{option} {getattr(self, option):g})")
        return plan

    def _reestimate(self, model: nn.Module, context: Context) -> None:
        """Estimate BatchNorm statistics again: those of the whole model no longer hold, and accuracy would drop to chance."""
        if not self.statistics or not any(norms_with_statistics(model)):
            return
        if not context.has_calibration:
            context.note("BatchNorm statistics are those of the whole model, because there is no calibration or training data; training estimates them again")
            return
        batches = list(context.calibration(self.statistics))
        count = reestimate(model, batches)
        context.note(f"statistics of {count} BatchNorms estimated again on {len(batches)} {'batches' if len(batches) > 1 else 'batch'}")

    def _report(self, found: PruningPlanScope, plan: Plan, context: Context) -> None:
        """Note what was removed where, and what was kept and why."""
        for kind in dict.fromkeys(group.kind for group in found.groups):
            here = [(group, int(gone.sum())) for group, gone in zip(found.groups, plan, strict=True) if group.kind == kind]
            removed, of = sum(count * group.width for group, count in here), sum(group.units * group.width for group, _ in here)
            context.note(f"{kind}: removed {removed} of {of} in {sum(count > 0 for _, count in here)} of {len(here)} places")
            untouched = [group.name for group, count in here if not count]
            if untouched:
                context.note(f"{kind}: nothing removed at this ratio from {_some(untouched)}")
        for reason in _reasons(found):
            context.note(reason)


def _cut_copy(model: nn.Module, found: PruningPlanScope, plan: Plan) -> nn.Module:
    twin = private_copy(model)
    cut(twin, found.groups, plan)
    found.sync_attributes(twin)
    return twin


def _nothing(model: nn.Module, found: PruningPlanScope) -> KdError:
    return KdError(f"prune channels: nothing can be removed from {type(model).__name__}", *_reasons(found)[:6])


def _reasons(found: PruningPlanScope) -> list[str]:
    """A line for each reason to keep something, with the layers that it applies to."""
    places: dict[tuple[str, str], list[str]] = {}
    for left in found.left:
        places.setdefault((left.kind, left.reason), []).append(left.name)
    return [f"left alone: {kind} of {_some(names)}: {reason}" for (kind, reason), names in places.items()]


def _sizes(groups: Sequence[Group]) -> str:
    widths = {kind: sorted({group.steps * group.width for group in groups if group.kind == kind}) for kind in dict.fromkeys(group.kind for group in groups)}
    return "widths: " + "; ".join(f"{kind} {', '.join(map(str, sizes))}" for kind, sizes in widths.items())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
