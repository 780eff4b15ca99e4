"""Merging: adapters are added to the weights they adapt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import nn

from kdkit import Context, KdError, Needs, Stage, Trait
from kdkit.guards import explain_error
from kdkit_peft.adapter_stage import FROZEN
from kdkit_peft.adapters import different_geometry
from kdkit_peft.low_rank import fold
from kdkit_peft.targets import is_packed


class Merge(Stage):
    """Add adapters to the weights they adapt, and remove them.

    Every adapted layer becomes its original module with W + (alpha / rank)·B·A; the outputs stay the same up to rounding, and
    parameters train again unless they were frozen before the adapters were attached. Works for all of peft's mergeable
    adapters, also on a `PeftModel`. A layer with packed weights becomes a float one, since its integers can't hold the sum.
    """

    id: ClassVar[str] = "peft.merge"
    needs: ClassVar[Needs] = Needs(packages=("peft",))
    requires: ClassVar[Iterable[str]] = {Trait.ADAPTERS_ATTACHED}
    adds: ClassVar[Iterable[str]] = {Trait.FREE_STRUCTURE}
    removes: ClassVar[Iterable[str]] = {Trait.ADAPTERS_ATTACHED}
    bridge: ClassVar[bool] = True
    keeps_values: ClassVar[bool] = True

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        from peft import PeftModel

        if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
            raise KdError(f"peft merge: {model.active_peft_config.peft_type.value} can't be merged: it extends the inputs, and adapts no weights")
        plain = model.get_base_model() if isinstance(model, PeftModel) else model
        merged: dict[nn.Module, nn.Module] = {}
        packed = [name for name, module in plain.named_modules() if is_packed(getattr(module, "base_layer", nn.Identity()))]
        _merge_below(plain, "", merged)
        count = len(merged) + fold(plain)
        if not count:
            raise KdError("peft merge: the model has no adapters", "%kd peft lora attaches some")
        _release(plain)
        context.note(f"merged {count} {'adapters' if count > 1 else 'adapter'}")
        if packed:
            names = f"{', '.join(packed[:6])}{', ...' if len(packed) > 6 else ''}"
            context.note(f"in float now, since packed integers can't hold the sum: {names}; quantize weights packs them again")
        return plain


def _merge_below(parent: nn.Module, prefix: str, merged: dict[nn.Module, nn.Module]) -> None:
    """Replace the adapted layers below `parent`; a layer with several names is merged once."""
    for key, child in parent._modules.items():
        if child is None:
            continue
        name = f"{prefix}.{key}".strip(".")
        if hasattr(child, "unload_and_optionally_merge_module") or hasattr(child, "base_layer"):
            if child not in merged:
                merged[child] = _merge(child, name)
            parent._modules[key] = merged[child]
        else:
            _merge_below(child, name, merged)


def _merge(layer: Any, name: str) -> nn.Module:
    if different := different_geometry(layer):
        raise KdError(
            f"peft merge: the adapter of {name} has {different}, so a merge would change the outputs",
            "%kd peft lora attaches adapters that can be merged",
        )
    if is_packed(getattr(layer, "base_layer", nn.Identity())):
        layer.base_layer = layer.base_layer.kdkit_unpacked()
    try:
        if hasattr(layer, "unload_and_optionally_merge_module"):
            return layer.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        if not layer.disable_adapters:
            layer.merge(safe_merge=True)
        return layer.get_base_layer()
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise KdError(f"peft merge: {type(layer).__name__} at {name} can't be merged: {explain_error(error)}", "%kd undo goes back to before the adapters") from error


def _release(model: Any) -> None:
    """Remove what adapters leave on a model: peft's config, and frozen flags."""
    frozen = getattr(model, FROZEN, ())
    for name, weight in model.named_parameters():
        weight.requires_grad_(weight.is_floating_point() and name not in frozen)
    for trace in (FROZEN, "peft_config"):
        if trace in vars(model):
            delattr(model, trace)
    if getattr(model, "_hf_peft_config_loaded", False):
        model._hf_peft_config_loaded = False
