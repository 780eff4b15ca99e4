"""Adapters: peft's layers around a model's own, attached so that merging them keeps the outputs."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from kdkit.guards import random_state_kept

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

SHARING = ("VERA",)
"""Adapters that share tensors, which peft creates only with its wrapper around a model."""


def attach_adapters(model: nn.Module, targets: Mapping[str, nn.Module], make_config: Callable[[str], Any]) -> None:
    """Replace `targets` by peft's layers of the same names, without a wrapper around the model.

    The adapters of half-precision layers have float32 weights, as peft gives them, because small updates vanish in half precision.

    Args:
        targets: name -> layer of the model.
        make_config: creates the `peft.PeftConfig` for the layers that match a regular expression.
    """
    if not targets:
        return
    from peft import get_peft_model, inject_adapter_in_model
    from peft.tuners.tuners_utils import cast_adapter_dtype

    config = make_config("|".join(map(re.escape, targets)))
    with warnings.catch_warnings(), _with_a_parameter(model):
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # peft detects transposed layers itself
        if config.peft_type in SHARING:
            get_peft_model(model, config).get_base_model()
        else:
            inject_adapter_in_model(config, model)
    cast_adapter_dtype(model, "default")
    for name, layer in targets.items():
        adapted: Any = model.get_submodule(name)
        _follow_geometry(adapted)
        adapted.train(layer.training)


@contextlib.contextmanager
def _with_a_parameter(model: nn.Module) -> Iterator[None]:
    """Give a model without parameters, whose weights are all packed, one for the while: peft asks the first one for its device."""
    if any(True for _ in model.parameters()):
        yield
        return
    device = next((buffer.device for buffer in model.buffers()), torch.device("cpu"))
    model.register_parameter("kdkit_device", nn.Parameter(torch.zeros(0, device=device)))
    try:
        yield
    finally:
        del model._parameters["kdkit_device"]


def refusal(model: nn.Module, name: str, layer: nn.Module, make_config: Callable[[str], Any]) -> str:
    """Why peft does not adapt this layer of this model, found by asking it; an empty string if it does. The layer stays as it is."""
    leaf = name.rpartition(".")[2]
    holder: Any = nn.Module()
    holder.add_module(leaf, layer)
    config = getattr(model, "config", None)
    if config is not None:
        holder.config = config
    flags = [(weight, weight.requires_grad) for weight in layer.parameters()]
    try:
        with random_state_kept():
            attach_adapters(holder, {leaf: layer}, make_config)
    except (ValueError, TypeError, NotImplementedError, RuntimeError):
        kind = getattr(config, "model_type", "")
        return f"peft supports no adapter on {f'{leaf} of a {kind} model' if kind else f'this {type(layer).__name__}'}"
    finally:
        for weight, flag in flags:
            weight.requires_grad_(flag)
    return ""


def different_geometry(adapted: Any) -> str:
    """How a convolution's adapter reads other positions than the convolution, in words; an empty string if it reads the same.

    peft copies kernel size, stride and padding, but no dilation and no padding mode.
    """
    base = adapted.get_base_layer() if hasattr(adapted, "get_base_layer") else None
    if not isinstance(base, CONVOLUTIONS):
        return ""
    names = ["stride", "padding", "dilation", *(["padding_mode"] if any(base._reversed_padding_repeated_twice) else [])]
    downs = getattr(adapted, "lora_A", {}).values()
    found = [(name, getattr(down, name), getattr(base, name)) for down in downs for name in names if getattr(down, name) != getattr(base, name)]
    return ", ".join(f"{name} {theirs} where the layer has {own}" for name, theirs, own in found)


def _follow_geometry(adapted: Any) -> None:
    """Let a convolution's adapter read the same positions as the convolution itself."""
    base = adapted.get_base_layer()
    if isinstance(base, CONVOLUTIONS):
        for down in getattr(adapted, "lora_A", {}).values():
            down.dilation, down.padding_mode = base.dilation, base.padding_mode
            down._reversed_padding_repeated_twice = base._reversed_padding_repeated_twice
