"""Targets: which layers an adapter can stand beside, so that it is heard and can be merged again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from kdkit.context import Context
from kdkit.errors import KdError
from kdkit.patterns import match
from kdkit.usage import Usage, linear_kinds, usage

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def adaptable_kinds() -> tuple[Any, ...]:
    """What LoRA knows: linear layers, convolutions, embeddings."""
    return (*linear_kinds(), *CONVOLUTIONS, nn.Embedding)


def find_targets(model: nn.Module, patterns: tuple[str, ...], skip: tuple[str, ...], context: Context) -> dict[str, nn.Module]:
    """The layers to adapt, by name; those that can't be are named in a note.

    Without patterns: every linear layer but those that give the model's output; and where there is none, as in a
    convolutional net, every convolution.

    Raises:
        KdError: a pattern fits nothing, or no layer is left.
    """
    spared = match(model, skip)
    kinds = adaptable_kinds()
    layers = match(model, patterns, kinds) if patterns else {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds)}
    layers = {name: layer for name, layer in layers.items() if name not in spared}
    seen = usage(model, context.example, layers)
    if not patterns:
        layers = _by_default(layers, seen)
    reasons = {name: _obstacle(name, layer, seen[name]) for name, layer in layers.items()}
    for reason in dict.fromkeys(filter(None, reasons.values())):
        context.note(f"skipped {', '.join(name for name, its in reasons.items() if its == reason)}: {reason}")
    found = {name: layer for name, layer in layers.items() if not reasons[name]}
    if not found:
        raise KdError(
            "peft lora: no layer can be adapted", *(f"{name or 'the model'}: {reason}" for name, reason in reasons.items()), "--targets names layers by pattern"
        )
    return found


def _by_default(layers: Mapping[str, nn.Module], seen: Mapping[str, Usage]) -> dict[str, nn.Module]:
    hidden = {name: layer for name, layer in layers.items() if not seen[name].gives_output}
    linear = {name: layer for name, layer in hidden.items() if isinstance(layer, linear_kinds())}
    return linear or {name: layer for name, layer in hidden.items() if isinstance(layer, CONVOLUTIONS)}


def _obstacle(name: str, layer: nn.Module, use: Usage) -> str:
    """Why no adapter can stand beside the layer, or an empty string."""
    if not name:
        return "it is the whole model; put it into an nn.Sequential"
    if type(layer).forward not in [kind.forward for kind in adaptable_kinds()] or "forward" in vars(layer):
        return f"{type(layer).__name__} has a forward of its own"
    if "weight" not in layer._parameters:
        return "its weight is computed from other tensors"
    if use.read_by and not use.called:
        return f"{' and '.join(sorted(use.read_by))} reads its weight itself, past any adapter"
    if use.tied_to:
        return f"its weight is tied to {', '.join(use.tied_to)}, which a merge would change too"
    if len(use.places) > 1:
        return f"it stands in {len(use.places)} places: {', '.join(use.places)}"
    return "adapters of grouped convolutions can't be merged" if getattr(layer, "groups", 1) > 1 else ""
