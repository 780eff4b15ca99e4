"""Targets: the layers that an adapter can adapt, so that it takes effect and can be merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from kdkit import Context, KdError
from kdkit.models import Usage, linear_kinds, select_layers, trace_layer_usage, untouchable, weights_elsewhere
from kdkit_peft.adapters import CONVOLUTIONS, refusal

WHOLE = "no adapter fits them, and %kd tune finetune --layers NAME trains them"


class Adapting(Protocol):
    """What the search for targets asks of a stage; see `AdapterStage`."""

    targets: tuple[str, ...]

    @property
    def title(self) -> str: ...

    def kinds(self) -> tuple[Any, ...]: ...

    def obstacle(self, layer: nn.Module) -> str: ...

    def obstacle_of_read(self, layer: nn.Module) -> str: ...

    def adapts_packed(self) -> bool: ...

    def make_config(self, pattern: str, model: nn.Module | None = None) -> Any: ...


@dataclass(frozen=True)
class Targets:
    """The layers to adapt, by name.

    Attributes:
        called: layers that the model calls, so that peft can wrap them.
        read: layers whose weights the model reads directly, so that the weights themselves need the adapter.
    """

    called: dict[str, nn.Module]
    read: dict[str, nn.Module]


def adaptable_kinds() -> tuple[Any, ...]:
    """The layers that LoRA supports: linear layers, convolutions, embeddings, and torch's attention with its own projections."""
    return (*linear_kinds(), *CONVOLUTIONS, nn.Embedding, nn.MultiheadAttention)


def find_targets(model: nn.Module, stage: Adapting, skip: tuple[str, ...], context: Context) -> Targets:
    """The layers to adapt; a note lists the layers that can't be adapted.

    Default: every linear layer and attention except those that compute the model's output; in a net without such layers, every convolution.

    Args:
        stage: names the layers with `targets`, and knows which kinds it adapts.
        skip: patterns of layers without adapters.

    Raises:
        KdError: a pattern matches nothing, or no layer is left.
    """
    spared = select_layers(model, skip)
    patterns, kinds = stage.targets, stage.kinds()
    layers = select_layers(model, patterns, kinds) if patterns else {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds)}
    layers = {name: layer for name, layer in layers.items() if name not in spared}
    seen = trace_layer_usage(model, context.example, layers)
    if not patterns:
        layers = _by_default(layers, seen)
    readers = {name: reader for name, layer in layers.items() if (reader := _reader(layer, seen[name]))} | _read_in_eval_mode(model, layers)
    reasons = {name: _obstacle(name, layer, seen[name], readers.get(name, ""), stage) for name, layer in layers.items()}
    packed = {name: layer for name, layer in layers.items() if name and stage.adapts_packed() and is_packed(layer)}
    reasons |= untouchable({name: layer for name, layer in layers.items() if name not in packed})
    reasons |= {name: _packed_obstacle(model, layer, seen[name], readers.get(name, "")) for name, layer in packed.items()}
    reasons |= {name: refusal(model, name, layer, stage.make_config) for name, layer in layers.items() if not reasons[name] and name not in readers}
    elsewhere = {} if patterns else {name: f"{reason}; {WHOLE}" for name, reason in weights_elsewhere(model, kinds, spared).items()}
    if patterns or any(isinstance(layer, CONVOLUTIONS) for layer in layers.values()):
        elsewhere |= _transposed(select_layers(model, patterns) if patterns else dict(model.named_modules()), spared)
    for reason in dict.fromkeys(filter(None, (reasons | elsewhere).values())):
        context.note(f"skipped {', '.join(name for name, its in (reasons | elsewhere).items() if its == reason)}: {reason}")
    found = {name: layer for name, layer in layers.items() if not reasons[name]}
    if not found:
        why = [f"{name or 'the model'}: {reason}" for name, reason in (reasons | elsewhere).items()]
        raise KdError(f"{stage.title}: no layer can be adapted", *why[:8], "--targets names layers by pattern", "%kd tune finetune --layers PATTERN trains whole layers")
    read = {name: layer for name, layer in found.items() if name in readers}
    return Targets({name: layer for name, layer in found.items() if name not in read}, read)


def _reader(layer: nn.Module, use: Usage) -> str:
    """The classes that read the layer's weights without calling it; an empty string if the model calls it."""
    if isinstance(layer, nn.MultiheadAttention):
        return type(layer).__name__
    return "" if use.called else " and ".join(sorted(use.read_by))


def _read_in_eval_mode(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """The linear layers of torch's encoder layers, which are called or read depending on the inputs, the mode and autocast."""
    inner = {child: type(module).__name__ for module in model.modules() if isinstance(module, nn.TransformerEncoderLayer) for child in module.children()}
    return {name: inner[layer] for name, layer in layers.items() if layer in inner}


def _transposed(layers: Mapping[str, nn.Module], spared: Mapping[str, nn.Module]) -> dict[str, str]:
    """Transposed convolutions, which a user who adapts convolutions may expect among them."""
    found = {name: layer for name, layer in layers.items() if name not in spared and isinstance(layer, nn.modules.conv._ConvTransposeNd)}
    return {name: f"peft supports no adapter on {type(layer).__name__}" for name, layer in found.items()}


def _by_default(layers: Mapping[str, nn.Module], seen: Mapping[str, Usage]) -> dict[str, nn.Module]:
    hidden = {name: layer for name, layer in layers.items() if not seen[name].gives_output}
    linear = {name: layer for name, layer in hidden.items() if isinstance(layer, (*linear_kinds(), nn.MultiheadAttention))}
    return linear or {name: layer for name, layer in hidden.items() if isinstance(layer, CONVOLUTIONS)}


def _obstacle(name: str, layer: nn.Module, use: Usage, reader: str, stage: Adapting) -> str:
    """Why the layer can't be adapted, or an empty string."""
    if not name:
        return "it is the whole model; put it into an nn.Sequential"
    if reader and (reason := stage.obstacle_of_read(layer)):
        return f"{reader} {'read' if ' and ' in reader else 'reads'} its weight directly{reason}"
    if not reader and (type(layer).forward not in [kind.forward for kind in adaptable_kinds()] or "forward" in vars(layer)):
        return f"{type(layer).__name__} overrides forward"
    if use.tied_to:
        return f"its weight is tied to {', '.join(use.tied_to)}, which a merge would change too"
    if len(use.places) > 1:
        return f"it has {len(use.places)} names: {', '.join(use.places)}"
    return "" if reader else stage.obstacle(layer)


def is_packed(layer: nn.Module) -> bool:
    """Whether a linear layer computes with packed weights as floats, so that an adapter can train beside them; a merge makes it float."""
    return isinstance(layer, nn.Linear) and hasattr(layer, "kdkit_unpacked")


def _packed_obstacle(model: nn.Module, layer: nn.Module, use: Usage, reader: str) -> str:
    """Why a packed layer can't be adapted, or an empty string."""
    if reader:
        return f"it has packed weights, which {reader} reads directly"
    if len(use.places) > 1:
        return f"it has {len(use.places)} names: {', '.join(use.places)}"
    inner = set(layer.children())
    others = [name for name, module in model.named_modules() if module is not layer and inner & set(module.children())]
    return f"its weight is tied to {', '.join(others)}, which a merge would change too" if others else ""
