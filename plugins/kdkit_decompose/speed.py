"""Speed: whether a replacement is slower than the layer that it replaces, measured on this machine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdkit import Batch
from kdkit.models import device_of, evaluating

TIMED_FROM = 1_000_000
"""Multiply-adds of one call from which a layer is timed: below, most of its time is that of any call, and a timing shows nothing else."""

NOISE = 1.05
"""A replacement is slower if it takes longer than the layer by more than this factor."""

_measured: dict[tuple, float] = {}
"""What this process has measured: a plan and the run after it decide alike."""


def capture_inputs(model: nn.Module, layers: Iterable[nn.Module], batch: Batch) -> dict[nn.Module, Tensor]:
    """The input that each of the layers receives first when `batch` runs; layers that it does not reach are absent."""
    found: dict[nn.Module, Tensor] = {}

    def capture(module: nn.Module, args: tuple[Any, ...]) -> None:
        found.setdefault(module, args[0].detach())

    with contextlib.ExitStack() as hooks, evaluating(model):
        for layer in layers:
            hooks.callback(layer.register_forward_pre_hook(capture).remove)
        batch.to(device_of(model)).call(model)
    return found


def slowdowns(replacements: Mapping[str, tuple[nn.Module, nn.Module]], inputs: Mapping[nn.Module, Tensor]) -> Iterator[tuple[str, float]]:
    """For each (layer, replacement) by name: time of the replacement over time of the layer; 0 where it is not timed.

    Args:
        replacements: name -> the layer and its replacement, which may have any values.
        inputs: what the layers receive.
    """
    for name, (layer, replacement) in replacements.items():
        timed = layer in inputs and inputs[layer].numel() and _multiply_adds(layer, inputs[layer]) >= TIMED_FROM
        yield name, _slowdown(layer, replacement, inputs[layer]) if timed else 0.0


def _slowdown(layer: nn.Module, replacement: nn.Module, inputs: Tensor) -> float:
    key = (repr(layer), repr(replacement), tuple(inputs.shape), inputs.dtype, inputs.device, torch.get_num_threads())
    if key not in _measured:
        _measured[key] = _shortest(replacement, layer, inputs)
    return _measured[key]


def _shortest(one: nn.Module, other: nn.Module, inputs: Tensor, budget_s: float = 0.1, least: int = 5) -> float:
    """Shortest time of `one` over that of `other`, called in turns: what else the machine does makes calls longer, never shorter."""
    times: dict[nn.Module, float] = {}
    began = time.perf_counter()
    rounds = 0
    with torch.no_grad():
        while rounds <= least or time.perf_counter() - began < budget_s:
            for module in (one, other):
                taken = _seconds(module, inputs)
                times[module] = min(times.get(module, taken), taken)
            rounds += 1
    return times[one] / times[other]


def _seconds(module: nn.Module, inputs: Tensor) -> float:
    began = time.perf_counter()
    module(inputs)
    if inputs.device.type == "cuda":
        torch.cuda.synchronize(inputs.device)
    return time.perf_counter() - began


def _multiply_adds(layer: Any, inputs: Tensor) -> int:
    """Each element of the weight is used once at each position: of the output of a convolution, of the input of a linear layer."""
    with torch.no_grad():
        positions = layer(inputs).numel() // layer.out_channels if hasattr(layer, "out_channels") else inputs.numel() // inputs.shape[-1]
    return positions * layer.weight.numel()
