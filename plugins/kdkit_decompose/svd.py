"""SVD: a linear layer as two thinner ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import ClassVar, NamedTuple

import pydantic
import torch
from torch import nn

from kdkit import Context, Forecast, KdError, Needs, Stage, Trait, param
from kdkit.models import Usage, linear_kinds, select_layers, trace_layer_usage, untouchable, weights_elsewhere
from kdkit_decompose.factors import CONVOLUTIONS, Linear, Moment, decompose, is_pointwise, product, shape_of, singular_values, watch_inputs
from kdkit_decompose.ranks import break_even, by_budget, by_energy, by_ratio, price


class Chosen(NamedTuple):
    """A layer and the rank it gets."""

    layer: Linear
    shape: tuple[int, int]
    rank: int


class Svd(Stage):
    """Replace linear layers by products of two thinner ones, by truncated singular value decomposition.

    W (out, in) becomes U·V of rank r, a plain Sequential(Linear(in, r), Linear(r, out)): r·(out + in) parameters and MACs. A 1x1
    convolution, which is a linear layer at each position, becomes two of them.
    The rank comes from one of `ratio`, `energy`, `budget` and `rank`. `aware` weighs errors by the inputs that the layer
    really gets (Wang et al., "SVD-LLM", 2024). Train afterwards: `distill soft` or `tune finetune`.

    Left alone, and named in the notes: layers where the product would cost parameters, tied ones, those whose weights are packed or
    masked, and those whose weight is read past their forward.
    """

    id: ClassVar = "decompose.svd"
    known_as: ClassVar[tuple[str, ...]] = ("low-rank", "low-rank factorization", "truncated SVD")
    needs: ClassVar = Needs(example=True)
    requires: ClassVar = {Trait.FLOAT_WEIGHTS, Trait.FREE_STRUCTURE}
    forbids: ClassVar = {Trait.ADAPTERS_ATTACHED, Trait.FAKE_QUANT}

    ratio: float | None = param(None, "share of each layer's parameters to keep; 0.5 when nothing else chooses the ranks", gt=0, lt=1, share="kept", search=(0.2, 0.8))
    energy: float | None = param(None, "share of each layer's squared singular values to keep", gt=0, le=1, search=(0.5, 0.99))
    budget: float | None = param(None, "share of all these layers' parameters to keep, given where it brings most", gt=0, lt=1, share="kept", search=(0.2, 0.8))
    rank: int | None = param(None, "the rank of every layer", ge=1)
    aware: bool = param(False, "keep what the layers give out on calibration data, not their weights: far better, above all without training after")
    batches: int = param(16, "calibration batches to look at, with --aware", ge=1)
    layers: tuple[str, ...] = param(
        (), "layers to decompose: linear, or 1x1 convolutions; default: all linear layers, in a net without any all 1x1 convolutions", names="layers"
    )
    skip: tuple[str, ...] = param((), "layers to leave alone", names="layers")
    round_to: int = param(1, "ranks are multiples of it, such as 8 for fast kernels", ge=1)

    @pydantic.model_validator(mode="after")
    def _one_way(self) -> Svd:
        said = [f"--{name}" for name in ("ratio", "energy", "budget", "rank") if getattr(self, name) is not None]
        if len(said) > 1:
            raise ValueError(f"{' and '.join(said)} each choose the ranks; give one of them")
        return self

    def required_inputs(self) -> Needs:
        return self.needs | Needs(calibration=self.aware)

    def check(self, model: nn.Module, context: Context) -> Iterable[str]:
        self._selected(model)
        return ()

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        layers = self._replaceable(model, context)
        moments = watch_inputs(model, layers, context.calibration(self.batches)) if self.aware else {}
        for name in [name for name, moment in moments.items() if not moment.rows]:
            context.note(f"{name}: no calibration batch reached it, so its weight alone counts")
            del moments[name]
        chosen = self._choose(layers, moments, context)
        made = {}
        for done, (name, (layer, _, rank)) in enumerate(chosen.items()):
            context.progress(done, len(chosen), name)
            made[layer] = decompose(layer, rank, moments.get(name))
        _tell(chosen, context)
        return _put(model, made)

    def forecast(self, model: nn.Module, context: Context) -> Forecast:
        """The structure; where `aware` and `energy` or `budget` meet it is that of the ranks without data."""
        chosen = self._choose(self._replaceable(model, context), {}, context)
        return Forecast(_put(model, {layer: product(layer, rank) for layer, _, rank in chosen.values()}))

    def _selected(self, model: nn.Module) -> dict[str, Linear]:
        """The layers that the options name; by default the linear layers and, where there are none, the 1x1 convolutions."""
        spared = select_layers(model, self.skip)
        if self.layers:
            found = select_layers(model, self.layers, (*linear_kinds(), *CONVOLUTIONS))
            chosen = {name: layer for name, layer in found.items() if not isinstance(layer, CONVOLUTIONS) or is_pointwise(layer)}
        else:
            layers = dict(model.named_modules())
            linear = {name: layer for name, layer in layers.items() if isinstance(layer, linear_kinds())}
            chosen = linear or {name: layer for name, layer in layers.items() if is_pointwise(layer)}
        kept = {name: layer for name, layer in chosen.items() if name not in spared}
        if not kept:
            raise _nothing_linear(model, list(chosen))
        return kept

    def _replaceable(self, model: nn.Module, context: Context) -> dict[str, Linear]:
        """The selected layers that another module can replace; a note names the others."""
        layers = self._selected(model)
        seen = trace_layer_usage(model, context.example, layers)
        reasons = {name: _obstacle(layer, seen[name]) for name, layer in layers.items()} | untouchable(layers)
        elsewhere = {} if self.layers else weights_elsewhere(model, linear_kinds(), select_layers(model, self.skip))
        _tell_skipped(reasons | elsewhere, context)
        kept = {name: layer for name, layer in layers.items() if not reasons[name]}
        if not kept:
            raise KdError("decompose svd: none of the layers can be decomposed", *(f"{name}: {reason}" for name, reason in (reasons | elsewhere).items()))
        return kept

    def _choose(self, layers: dict[str, Linear], moments: dict[str, Moment], context: Context) -> dict[str, Chosen]:
        """A rank for each layer where a product saves parameters; the others are named in a note."""
        shapes = {name: shape_of(layer) for name, layer in layers.items()}
        ranks = self._ranks(layers, shapes, moments, context)
        dear = {name: _dear(rank, break_even(shapes[name])) for name, rank in ranks.items() if rank >= break_even(shapes[name])}
        if len(dear) == len(ranks):
            raise KdError(
                "decompose svd would save no parameter in any layer",
                "keep less: a smaller --ratio, --energy, --budget, --rank or --round-to",
                *(f"{name}: {reason}" for name, reason in list(dear.items())[:8]),
            )
        _tell_skipped(dear, context)
        return {name: Chosen(layers[name], shapes[name], rank) for name, rank in ranks.items() if name not in dear}

    def _ranks(self, layers: dict[str, Linear], shapes: dict[str, tuple[int, int]], moments: dict[str, Moment], context: Context) -> dict[str, int]:
        if self.rank is not None:
            return dict.fromkeys(layers, -(-self.rank // self.round_to) * self.round_to)
        if self.energy is None and self.budget is None:
            return {name: by_ratio(shape, self.ratio or 0.5, self.round_to) for name, shape in shapes.items()}
        values = {}
        for done, (name, layer) in enumerate(layers.items()):
            context.progress(done, len(layers), f"singular values of {name}")
            values[name] = singular_values(layer, moments.get(name))
        if self.energy is not None:
            return {name: by_energy(values[name], self.energy, self.round_to) for name in layers}
        ranks = by_budget(shapes, values, self.budget or 0.0, self.round_to)
        if not all(ranks.values()):
            least = sum(min(price(shape, self.round_to), math.prod(shape)) for shape in shapes.values()) / sum(map(math.prod, shapes.values()))
            raise KdError(
                f"decompose svd: --budget {self.budget} is too small for rank {self.round_to} in every layer",
                f"the least is --budget {math.ceil(least * 1000) / 1000}",
                "or choose fewer --layers",
            )
        return ranks


def _nothing_linear(model: nn.Module, spared: list[str]) -> KdError:
    """Why there is nothing to decompose, and what works on the layers that the model has."""
    if spared:
        return KdError(f"decompose svd: --skip leaves nothing of {', '.join(spared[:8])}", "leave out --skip, or a part of it")
    kinds = Counter(type(module).__name__ for module in model.modules() if any(True for _ in module.parameters(recurse=False)))
    has = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "no weights"
    return KdError(
        f"decompose svd works on linear layers and 1x1 convolutions, and finds none here: {type(model).__name__} has {has}",
        "%kd prune channels makes convolutions narrower",
        "%kd quantize static makes them smaller and faster",
    )


def _obstacle(layer: Linear, use: Usage) -> str:
    """Why the layer can't be replaced, or an empty string."""
    if type(layer).forward not in [kind.forward for kind in (*linear_kinds(), *CONVOLUTIONS)] or "forward" in vars(layer):
        return f"{type(layer).__name__} has a forward of its own"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        return "hooks hang on it"
    if use.read_by:
        return f"{' and '.join(sorted(use.read_by))} reads its weight itself"
    if use.tied_to:
        return f"its weight is tied to {', '.join(use.tied_to)}"
    return "" if torch.isfinite(layer.weight).all() else "its weight has values that are not finite"


def _put(model: nn.Module, made: dict[nn.Module, nn.Sequential]) -> nn.Module:
    """The model with every layer of `made` replaced, wherever it occurs."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in made:
                parent._modules[name] = made[child]
    return made.get(model, model)


def _dear(rank: int, even: int) -> str:
    return f"rank {rank} saves no parameters, {f'only ranks below {even} do' if even > 1 else 'and no rank does'}"


def _tell_skipped(reasons: dict[str, str], context: Context) -> None:
    """Name the layers that have a reason, those with the same one together."""
    for reason in dict.fromkeys(filter(None, reasons.values())):
        context.note(f"skipped {', '.join(name for name, its in reasons.items() if its == reason)}: {reason}")


def _tell(chosen: dict[str, Chosen], context: Context) -> None:
    ranks = [each.rank for each in chosen.values()]
    before, after = sum(math.prod(each.shape) for each in chosen.values()), sum(price(each.shape, each.rank) for each in chosen.values())
    span = f"rank {min(ranks)}" if min(ranks) == max(ranks) else f"ranks {min(ranks)} to {max(ranks)}"
    context.note(f"{len(chosen)} {'layers' if len(chosen) > 1 else 'layer'} decomposed, {span}: {after:,} of {before:,} weights kept ({after / before:.0%})")
