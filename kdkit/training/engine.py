"""The engine: accelerate for one fit - device, mixed precision, processes - leaving no trace of it behind."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kdkit.errors import KdError
from kdkit.modes import Modes

if TYPE_CHECKING:
    from accelerate import Accelerator

    from kdkit.contract import TrainStage

_MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
_MARKS = ("forward", "_original_forward", "_is_accelerate_prepared")
"""What accelerate leaves in a prepared module's `__dict__`."""


class Surroundings:
    """Torch's modes and accelerate's globals as they are now, to be put back when a training is over."""

    def __init__(self) -> None:
        from accelerate.state import AcceleratorState, GradientState, PartialState

        self.modes = Modes()
        self.accelerate: list[tuple[Any, dict]] = [(state._shared_state, dict(state._shared_state)) for state in (AcceleratorState, GradientState, PartialState)]

    def clear(self) -> None:
        """Gradients on, and accelerate as if it had never been used: what it keeps there allows one precision a kernel."""
        torch.set_grad_enabled(True)
        for shared, _ in self.accelerate:
            shared.clear()

    def put_back(self) -> None:
        """All as it was; called twice it does no harm."""
        self.modes.put_back()
        for shared, before in self.accelerate:
            shared.clear()
            shared.update(before)


def engine(device: str, precision: str) -> Accelerator:
    """An accelerator for one fit.

    Raises:
        KdError: the device can't compute in that precision.
    """
    from accelerate import Accelerator

    if precision == "fp16" and torch.device(device).type == "cpu":
        raise KdError("--precision fp16 needs a GPU", "--precision bf16 works on a CPU too")
    with _on(device):
        try:
            return Accelerator(mixed_precision=_MIXED[precision], cpu=torch.device(device).type == "cpu")
        except ValueError as error:
            raise KdError(f"--precision {precision} can't be used on {device}: {error}", "--precision fp32 works everywhere") from error


def arithmetic(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Autocast for what is computed beside the model's forward pass, which accelerate takes care of."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


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
