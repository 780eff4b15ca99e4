"""Traits: facts about a model that decide which stages may follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


class Trait(StrEnum):
    """A fact about a model that decides which stages may follow.

    A plugin may use its own trait names besides these; kdkit can check only the traits that `traits_of` detects.

    Attributes:
        words: its name in messages and help.
        visible: `traits_of` can detect it; kdkit can't verify the other traits.

    >>> Trait.MASKS_PENDING, Trait.MASKS_PENDING.words, Trait.ENCODED.visible
    (<Trait.MASKS_PENDING: 'masks_pending'>, 'pruning masks that are not folded in', False)
    """

    words: str
    visible: bool

    def __new__(cls, value: str, words: str, visible: bool = True) -> Trait:
        trait = str.__new__(cls, value)
        trait._value_ = value
        trait.words, trait.visible = words, visible
        return trait

    FLOAT_WEIGHTS = "float_weights", "float weights"
    TRAINABLE = "trainable", "weights that can be trained"
    FREE_STRUCTURE = "free_structure", "a structure that may be changed"
    MASKS_PENDING = "masks_pending", "pruning masks that are not folded in"
    ADAPTERS_ATTACHED = "adapters_attached", "adapters attached"
    FAKE_QUANT = "fake_quant", "simulated quantization"
    PACKED_WEIGHTS = "packed_weights", "packed weights"
    ONNX = "onnx", "the onnxruntime form"
    ENCODED = "encoded", "entropy-coded weights", False


SIMULATED = frozenset({Trait.MASKS_PENDING, Trait.FAKE_QUANT})
"""Traits of models whose size and speed are only simulated: reports mark them as such."""

SEEN = frozenset(trait for trait in Trait if trait.visible)
"""The traits that `traits_of` can detect."""


def traits_of(model: nn.Module) -> frozenset[str]:
    """The traits that can be detected in a model or in one of its layers: the union over its modules.

    A module, such as a packed layer or a parametrization, can declare its traits in the attribute or property `kdkit_traits`. If these
    include the kind of its weights, its tensors are not inspected. Float weights in one layer and packed weights in another give both traits.

    >>> import torch
    >>> from torch import nn
    >>> sorted(traits_of(nn.Linear(2, 2)))
    [<Trait.FLOAT_WEIGHTS: 'float_weights'>, <Trait.FREE_STRUCTURE: 'free_structure'>, <Trait.TRAINABLE: 'trainable'>]
    >>> class Masked(nn.Module):
    ...     kdkit_traits = {Trait.MASKS_PENDING}
    ...     def forward(self, weight): return weight * (weight.abs() > 0.1)
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> _ = torch.nn.utils.parametrize.register_parametrization(net[0], "weight", Masked())
    >>> Trait.MASKS_PENDING in traits_of(net), Trait.MASKS_PENDING in traits_of(net[1])
    (True, False)
    """
    seen = _union(model.modules())
    if not seen & {Trait.PACKED_WEIGHTS, Trait.ONNX}:  # a model without weights, too
        seen.add(Trait.FLOAT_WEIGHTS)
    if Trait.FLOAT_WEIGHTS in seen and not seen & {Trait.ONNX, Trait.ADAPTERS_ATTACHED}:
        seen.add(Trait.FREE_STRUCTURE)
    return frozenset(seen)


def untouchable(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """The layers that a stage that rewrites float weights must skip: packed, masked, fake-quantized, or computed from other tensors.

    Returns:
        Name -> the reason and, where one line makes the weight an ordinary parameter, that line. A layer's parametrizations are inspected
        with it, its other children are not.

    >>> from torch import nn
    >>> half = nn.Linear(2, 2)
    >>> half.kdkit_traits = {Trait.PACKED_WEIGHTS}
    >>> untouchable({"first": half, "second": nn.Linear(2, 2)})
    {'first': 'it has packed weights'}
    >>> untouchable({"third": nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))})["third"]
    "its weight is computed by spectral_norm (torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') makes it a parameter)"
    """
    return {name: reason for name, layer in layers.items() if (reason := _why_untouchable(layer))}


def _why_untouchable(layer: nn.Module) -> str:
    from kdkit.models.computed_weights import computed_tensors

    has = sorted(_union(_with_parametrizations(layer)) & (SIMULATED | {Trait.PACKED_WEIGHTS}))
    computed = computed_tensors(layer)
    if has:
        masks = [tensor.remedy for tensor in computed if tensor.by == "torch.nn.utils.prune"]
        return f"it has {' and '.join(in_words(trait) for trait in has)}" + (f" ({' and '.join(masks)} folds them in)" if masks else "")
    return " and ".join(f"its {name} is computed by {by} ({remedy} makes it a parameter)" for name, by, remedy in computed)


def uncertain_after(adds: Iterable[str], before: Iterable[str]) -> frozenset[str]:
    """The traits of which a stage's declaration does not decide whether its result has them.

    A stage that packs weights may skip some layers, depending on its options and the model: the traits of float weights that the model
    had before then stay or go. An export to onnxruntime keeps packed weights for which it has an operator, and a merge of adapters those
    that have no adapter. A trait that the model lacked, or
    that the stage adds, is certain.

    >>> sorted(uncertain_after({Trait.PACKED_WEIGHTS}, {Trait.FLOAT_WEIGHTS})), sorted(uncertain_after({Trait.PACKED_WEIGHTS}, ()))
    ([<Trait.FLOAT_WEIGHTS: 'float_weights'>], [])
    >>> sorted(uncertain_after({Trait.ONNX}, {Trait.PACKED_WEIGHTS}))
    [<Trait.PACKED_WEIGHTS: 'packed_weights'>]
    """
    added = frozenset(adds)
    if Trait.ONNX in added or (Trait.FREE_STRUCTURE in added and Trait.ADAPTERS_ATTACHED in before):
        return frozenset({Trait.PACKED_WEIGHTS}) & frozenset(before)
    return frozenset({Trait.FLOAT_WEIGHTS, Trait.FREE_STRUCTURE, Trait.TRAINABLE}) & frozenset(before) - added if Trait.PACKED_WEIGHTS in added else frozenset()


def in_words(trait: str) -> str:
    """The name of a trait in messages and help.

    >>> in_words(Trait.FLOAT_WEIGHTS)
    'float weights'
    """
    return next((known.words for known in Trait if known == trait), trait)


def _union(modules: Iterable[nn.Module]) -> set[str]:
    return {trait for module in modules for trait in _traits_of_one(module)}


def _with_parametrizations(module: nn.Module) -> list[nn.Module]:
    parametrizations = module._modules.get("parametrizations")
    return [module, *(parametrizations.modules() if parametrizations is not None else ())]


def _traits_of_one(module: nn.Module) -> set[str]:
    declared = set(getattr(module, "kdkit_traits", ()))
    return declared if declared & {Trait.FLOAT_WEIGHTS, Trait.PACKED_WEIGHTS, Trait.ONNX} else declared | _visible_in(module)


def _visible_in(module: nn.Module) -> set[str]:
    """The traits of one module without its children."""
    seen: set[str] = set()
    weights = [weight for weight in module._parameters.values() if weight is not None]
    floating = any(weight.is_floating_point() for weight in weights)
    if _is_packed(module):
        seen.add(Trait.PACKED_WEIGHTS)
    elif floating:
        seen.add(Trait.FLOAT_WEIGHTS)
    if floating:
        seen.add(Trait.TRAINABLE)
    if _made_by(module, "peft.tuners"):
        seen.add(Trait.ADAPTERS_ATTACHED)
    if _made_by(module, "torch.ao.pruning") or any(name.endswith("_mask") and hasattr(module, f"{name[:-5]}_orig") for name in module._buffers):
        seen.add(Trait.MASKS_PENDING)
    if "fakequant" in type(module).__name__.lower():
        seen.add(Trait.FAKE_QUANT)
    return seen


def _is_packed(module: nn.Module) -> bool:
    from torch import Tensor

    kept = [*module._parameters.values(), *module._buffers.values()]
    subclassed = any(tensor is not None and type(tensor.data) is not Tensor for tensor in kept)
    return (
        subclassed
        or _made_by(module, "torch.ao.nn.quantized", "bitsandbytes", "hqq")
        or any(weight is not None and not (weight.is_floating_point() or weight.is_complex()) for weight in module._parameters.values())
    )


def _made_by(module: nn.Module, *packages: str) -> bool:
    return any(kind.__module__.startswith(package) for kind in type(module).__mro__ for package in packages)
