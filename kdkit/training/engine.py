"""The engine: accelerate for one fit - device, mixed precision, processes - leaving no trace of it behind."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kdkit.errors import KdError
from kdkit.restoring import restored

if TYPE_CHECKING:
    from accelerate import Accelerator

    from kdkit.contract import TrainStage

_MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
_MARKS = ("forward", "_original_forward", "_is_accelerate_prepared")
"""What accelerate leaves in a prepared module's `__dict__`."""


@contextlib.contextmanager
def engine(device: str, precision: str) -> Iterator[Accelerator]:
    """An accelerator of our own: accelerate keeps its state in globals, which are put aside meanwhile.

    Raises:
        KdError: the device can't compute in that precision.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    if precision == "fp16" and torch.device(device).type == "cpu":
        raise KdError("--precision fp16 needs a GPU", "--precision bf16 works on a CPU too")
    kept: list[tuple[Any, dict]] = [(state._shared_state, dict(state._shared_state)) for state in (AcceleratorState, GradientState, PartialState)]

    def put_back() -> None:
        for shared, before in kept:
            shared.clear()
            shared.update(before)

    with restored(put_back), modes_restored(torch.device(device).type):
        for shared, _ in kept:
            shared.clear()
        with _on(device):
            try:
                made = Accelerator(mixed_precision=_MIXED[precision], cpu=torch.device(device).type == "cpu")
            except ValueError as error:
                raise KdError(f"--precision {precision} can't be used on {device}: {error}", "--precision fp32 works everywhere") from error
        yield made


@contextlib.contextmanager
def modes_restored(device: str) -> Iterator[None]:
    """Gradients on; afterwards torch's modes as they were.

    An interrupt on the way out of `no_grad` or `autocast` would leave them on for the rest of the kernel's life, and under
    autocast all later training would see stale copies of its weights.
    """
    gradients, casts, depth = torch.is_grad_enabled(), torch.is_autocast_enabled(device), _autocast_depth()

    def put_back() -> None:
        torch.set_grad_enabled(gradients)
        torch.set_autocast_enabled(device, casts)
        while _autocast_depth() > depth:
            torch.autocast_decrement_nesting()
            torch.clear_autocast_cache()

    with restored(put_back):
        torch.set_grad_enabled(True)
        yield


def _autocast_depth() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


@contextlib.contextmanager
def _on(device: str) -> Iterator[None]:
    """In a single process, accelerate's choice of a device is ours; launched processes have one each."""
    from accelerate.utils import patch_environment

    if "LOCAL_RANK" in os.environ:
        yield
    else:
        with patch_environment(accelerate_torch_device=device):
            yield


@contextlib.contextmanager
def unmarked(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Take off afterwards what `Accelerator.prepare` puts on modules, such as a forward under autocast."""
    before = [(module, {key: module.__dict__[key] for key in _MARKS if key in module.__dict__}) for module in modules]
    try:
        yield
    finally:
        for module, marks in before:
            for key in _MARKS:
                module.__dict__.pop(key, None)
            module.__dict__.update(marks)


def optimizer_of(stage: TrainStage, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The stage's optimizer over these weights."""
    rate, decay = stage.learning_rate, stage.weight_decay
    match stage.optimizer:
        case "adamw":
            return torch.optim.AdamW(weights, lr=rate, weight_decay=decay)
        case "adam":
            return torch.optim.Adam(weights, lr=rate, weight_decay=decay)
        case _:
            return torch.optim.SGD(weights, lr=rate, momentum=0.9, weight_decay=decay)
