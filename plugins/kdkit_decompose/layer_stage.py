"""Layer stages: techniques that replace layers one by one, each by a chain of smaller ones that computes nearly the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from kdkit import Context, Forecast, KdError, Needs, Stage, Trait, param
from kdkit.models import Usage, linear_kinds, select_layers, trace_layer_usage, untouchable, weights_elsewhere
from kdkit_decompose.forms import CONVOLUTIONS
from kdkit_decompose.speed import NOISE, capture_inputs, slowdowns

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Replacement(ABC):
    """What a layer becomes.

    Attributes:
        layer: the layer that it replaces.
        ranks: of its factors.
    """

    layer: Any
    ranks: tuple[int, ...]

    @property
    @abstractmethod
    def weights(self) -> int:
        """Number of elements of the new weights, without the bias."""

    @abstractmethod
    def structure(self) -> nn.Module:
        """The new module, with any values, and with the layer's dtype, device, flags, mode and bias."""

    @abstractmethod
    def made(self) -> nn.Module:
        """The new module."""

    def __str__(self) -> str:
        if not self.ranks:
            return "it"
        return f"rank{'s' if len(self.ranks) > 1 else ''} {' and '.join(map(str, self.ranks))}"

    def too_dear(self) -> str:
        """Why it is no gain; empty if it saves parameters."""
        return "" if self.weights < self.layer.weight.numel() else f"{self} saves no parameters"


class LayerStage(Stage):
    """A stage that replaces layers. A subclass writes `kinds`, `obstacle` and `replacements`."""

    needs: ClassVar = Needs(example=True)
    requires: ClassVar = {Trait.FLOAT_WEIGHTS, Trait.FREE_STRUCTURE}
    forbids: ClassVar = {Trait.ADAPTERS_ATTACHED, Trait.FAKE_QUANT}
    works_on: ClassVar[str] = ""
    """Layers of `kinds`, in words."""
    keep_less: ClassVar[str] = ""
    """How to ask for smaller replacements: a hint."""

    layers: tuple[str, ...] = param((), "layers to decompose; default: all that this technique works on", names="layers")
    skip: tuple[str, ...] = param((), "layers to leave alone", names="layers")
    guard: bool = param(
        True, "leave alone the layers whose replacement this machine runs slower; layers of less than a million multiply-adds are not timed: --no-guard for size alone"
    )

    def kinds(self) -> tuple[type, ...]:
        """The classes of layers that the stage works on."""
        return (*linear_kinds(), *CONVOLUTIONS, *TRANSPOSED)

    def obstacle(self, layer: Any) -> str:
        """Why the technique does not suit a layer of `kinds`; empty if it does."""
        if isinstance(layer, TRANSPOSED):
            return "a transposed convolution"
        return "its channels are in groups" if isinstance(layer, CONVOLUTIONS) and layer.groups > 1 else ""

    def replacements(self, model: nn.Module, layers: Mapping[str, Any], context: Context, *, with_data: bool) -> dict[str, Replacement]:
        """What the layers become; the stage leaves the others alone.

        Args:
            model: the model.
            layers: name -> layer, those that can be replaced.
            context: of the run.
            with_data: whether calibration data may be used; a forecast does not use it.
        """
        raise NotImplementedError

    def fill(self, model: nn.Module, chosen: dict[str, Replacement], context: Context) -> dict[str, Replacement]:
        """Find the values of the replacements, where that is long work that a forecast does not need; default: they have them."""
        return chosen

    def check(self, model: nn.Module, context: Context) -> Iterable[str]:
        self._selected(model)
        return ()

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        chosen = self.fill(model, self._chosen(model, context, with_data=True), context)
        made = {}
        for done, (name, replacement) in enumerate(chosen.items()):
            context.progress(done, len(chosen), name)
            made[replacement.layer] = replacement.made()
        self.tell(chosen, context)
        return put_modules(model, made)

    def forecast(self, model: nn.Module, context: Context) -> Forecast:
        """The structure; where ranks depend on data, it is that of the ranks without data."""
        chosen = self._chosen(model, context, with_data=False)
        return Forecast(put_modules(model, {replacement.layer: replacement.structure() for replacement in chosen.values()}))

    def tell(self, chosen: Mapping[str, Replacement], context: Context) -> None:
        """Note what was done."""
        before, after = sum(each.layer.weight.numel() for each in chosen.values()), sum(each.weights for each in chosen.values())
        ranks = sorted({rank for each in chosen.values() for rank in each.ranks})
        span = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        context.note(f"{len(chosen)} {'layers' if len(chosen) > 1 else 'layer'} decomposed, {span}: {after:,} of {before:,} weights kept ({after / before:.0%})")

    def _chosen(self, model: nn.Module, context: Context, *, with_data: bool) -> dict[str, Replacement]:
        """The replacements that save parameters and are not slower; the other layers are named in notes."""
        layers = self._replaceable(model, context)
        found = self.replacements(model, layers, context, with_data=with_data)
        dear = {name: reason for name, each in found.items() if (reason := each.too_dear())}
        if len(dear) == len(found):
            raise KdError(f"{self.title} would save no parameter in any layer", self.keep_less, *_some_lines(dear))
        tell_skipped(dear, context)
        return self._not_slower(model, {name: each for name, each in found.items() if name not in dear}, context)

    def _not_slower(self, model: nn.Module, found: dict[str, Replacement], context: Context) -> dict[str, Replacement]:
        if not self.guard:
            return found
        inputs = capture_inputs(model, [each.layer for each in found.values()], context.example[:1])
        slow: dict[str, str] = {}
        for name, factor in slowdowns({name: (each.layer, each.structure()) for name, each in found.items()}, inputs):
            context.progress(len(slow), len(found), f"timing {name}")
            if factor > NOISE:
                slow[name] = f"{found[name]} takes {factor:.1f} times as long here"
        if len(slow) == len(found):
            raise KdError(f"{self.title} would make every layer slower on this machine", self.keep_less, "--no-guard decomposes for size alone", *_some_lines(slow))
        tell_skipped(slow, context)
        return {name: each for name, each in found.items() if name not in slow}

    def _selected(self, model: nn.Module) -> dict[str, nn.Module]:
        """The layers that the options name; default: all of `kinds`."""
        spared = select_layers(model, self.skip)
        layers: dict[str, nn.Module] = select_layers(model, self.layers, self.kinds()) if self.layers else dict(model.named_modules())
        chosen = {name: layer for name, layer in layers.items() if isinstance(layer, self.kinds())}
        kept = {name: layer for name, layer in chosen.items() if name not in spared}
        if kept:
            return kept
        if chosen:
            raise KdError(f"{self.title}: --skip leaves nothing of {', '.join(list(chosen)[:8])}", "leave out --skip, or a part of it")
        kinds = Counter(type(module).__name__ for module in model.modules() if any(True for _ in module.parameters(recurse=False)))
        has = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "no weights"
        raise KdError(
            f"{self.title} works on {self.works_on}, and finds none here: {type(model).__name__} has {has}",
            "%kd list decompose",
            "%kd quantize dynamic makes it smaller and faster",
        )

    def _replaceable(self, model: nn.Module, context: Context) -> dict[str, Any]:
        """The selected layers that another module can replace; a note names the others."""
        layers = self._selected(model)
        seen = trace_layer_usage(model, context.example, layers)
        reasons = {name: self.obstacle(layer) or _obstacle(layer, seen[name], self.kinds()) for name, layer in layers.items()} | untouchable(layers)
        elsewhere = {} if self.layers else weights_elsewhere(model, linear_kinds(), select_layers(model, self.skip))
        tell_skipped(reasons | elsewhere, context)
        kept = {name: layer for name, layer in layers.items() if not reasons[name]}
        if not kept:
            raise KdError(f"{self.title}: none of the layers can be decomposed", *(f"{name}: {reason}" for name, reason in (reasons | elsewhere).items()))
        return kept


def _obstacle(layer: Any, use: Usage, kinds: tuple[type, ...]) -> str:
    """Why the layer can't be replaced, or an empty string."""
    if type(layer).forward not in [kind.forward for kind in kinds] or "forward" in vars(layer):  # type: ignore[attr-defined]
        return f"{type(layer).__name__} has a forward of its own"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        return "hooks hang on it"
    if use.read_by:
        return f"{' and '.join(sorted(use.read_by))} reads its weight itself"
    if use.tied_to:
        return f"its weight is tied to {', '.join(use.tied_to)}"
    return "" if torch.isfinite(layer.weight).all() else "its weight has values that are not finite"


def put_modules(model: nn.Module, made: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """The model with each layer of `made` replaced, wherever it occurs; the replacement, if the model is that layer.

    >>> layer, thin = nn.Linear(2, 2), nn.Identity()
    >>> put_modules(nn.Sequential(layer, nn.ReLU(), layer), {layer: thin})
    Sequential(
      (0): Identity()
      (1): ReLU()
      (2): Identity()
    )
    """
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in made:
                parent._modules[name] = made[child]
    return made.get(model, model)


def tell_skipped(reasons: Mapping[str, str], context: Context) -> None:
    """Name the layers that have a reason, those with the same one together."""
    for reason in dict.fromkeys(filter(None, reasons.values())):
        context.note(f"skipped {', '.join(name for name, its in reasons.items() if its == reason)}: {reason}")


def _some_lines(reasons: Mapping[str, str]) -> list[str]:
    return [f"{name}: {reason}" for name, reason in list(reasons.items())[:8]]
