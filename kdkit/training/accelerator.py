"""The accelerator: accelerate for one fit (device, mixed precision, processes), without a trace of it afterwards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kdkit.errors import KdError
from kdkit.guards import explain_error
from kdkit.guards.cleanup import count_cleanups, run_cleanups
from kdkit.guards.torch_modes import TorchModes

if TYPE_CHECKING:
    from accelerate import Accelerator


_MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
_MARKS = ("forward", "_original_forward", "_is_accelerate_prepared")
"""What accelerate adds to a prepared module's `__dict__`."""


class GlobalState:
    """A snapshot of torch's modes, accelerate's globals and the cleanups that are due, restored after a training."""

    def __init__(self) -> None:
        from accelerate.state import AcceleratorState, GradientState, PartialState

        self.modes, self.cleanups = TorchModes(), count_cleanups()
        self.accelerate: list[tuple[Any, dict]] = [(state._shared_state, dict(state._shared_state)) for state in (AcceleratorState, GradientState, PartialState)]

    def clear(self) -> None:
        """Enable gradients and clear accelerate's globals, which allow one precision per kernel."""
        torch.set_grad_enabled(True)
        for shared, _ in self.accelerate:
            shared.clear()

    def put_back(self) -> None:
        """Restore the snapshot; a second call changes nothing."""
        run_cleanups(self.cleanups)
        self.modes.put_back()
        for shared, before in self.accelerate:
            shared.clear()
            shared.update(before)


def make_accelerator(device: str, precision: str) -> Accelerator:
    """An accelerator for one fit.

    Raises:
        KdError: the device does not support the precision.
    """
    from accelerate import Accelerator

    if precision == "fp16" and torch.device(device).type == "cpu":
        raise KdError("--precision fp16 needs a GPU", "--precision bf16 works on a CPU too")
    with _on(device):
        try:
            return Accelerator(mixed_precision=_MIXED[precision], cpu=torch.device(device).type == "cpu")
        except (ValueError, RuntimeError, ImportError) as error:
            raise KdError(f"--precision {precision} can't be used on {device}: {explain_error(error)}", "--precision fp32 works everywhere") from error


def autocast_for(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Autocast for all but the model's forward pass, which accelerate wraps itself."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


@contextlib.contextmanager
def _on(device: str) -> Iterator[None]:
    """Make accelerate use this device in a single process; launched processes have one each."""
    from accelerate.utils import patch_environment

    if "LOCAL_RANK" in os.environ:
        yield
    else:
        with patch_environment(accelerate_torch_device=device):
            yield


@contextlib.contextmanager
def without_accelerate_marks(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Remove afterwards what `Accelerator.prepare` adds to modules, such as a forward under autocast."""
    before = [(module, {key: module.__dict__[key] for key in _MARKS if key in module.__dict__}) for module in modules]
    try:
        yield
    finally:
        for module, marks in before:
            for key in _MARKS:
                module.__dict__.pop(key, None)
            module.__dict__.update(marks)
