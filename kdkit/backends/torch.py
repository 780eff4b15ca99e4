"""Backends on torch: the CPU in fp32 and bf16, and CUDA.

All except the plain CPU run a copy, so the measured version does not change.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.backends.base import Backend
from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models.evaluation import evaluating
from kdkit.models.traits import Trait, traits_of


class TorchBackend(Backend):
    """Run a model in torch.

    Args:
        name: the name in options.
        device: "cpu", "cuda", "mps", ...
        dtype: dtype of weights and arithmetic, such as "bfloat16"; None: unchanged. Half-precision outputs are returned as float32.

    >>> with TorchBackend("cpu-bf16", dtype="bfloat16").runner(nn.Linear(3, 2)) as call:
    ...     call(Batch((torch.zeros(4, 3),))).dtype
    torch.float32
    """

    def __init__(self, name: str, device: str = "cpu", dtype: str | None = None):
        self.name, self.device = name, device
        self.dtype: torch.dtype | None = getattr(torch, dtype) if dtype else None

    def unavailable(self) -> str:
        """Why the device is unavailable; empty if it is available."""
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            return f"torch {torch.__version__} was built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device on this machine"
        if self.device == "mps" and not torch.backends.mps.is_available():
            return "torch sees no Apple GPU on this machine"
        return ""

    def refuses(self, model: nn.Module) -> str:
        """Refuse onnxruntime versions except on the plain CPU, and packed weights if they would have to be cast."""
        traits = traits_of(model)
        if Trait.ONNX in traits and (self.device != "cpu" or self.dtype is not None):
            return "an onnxruntime version runs on the CPU only, without a cast: measure it on cpu or int8"
        if Trait.PACKED_WEIGHTS in traits and self.dtype is not None:
            return f"its weights are packed and can't be cast to {self.dtype}: measure it on cpu"
        return ""

    @contextlib.contextmanager
    def runner(self, model: nn.Module) -> Iterator[Callable[[Batch], Any]]:
        """Run the model itself on the plain CPU, otherwise a copy."""
        for reason in (self.unavailable(), self.refuses(model)):
            if reason:
                raise KdError(f"backend {self.name}: {reason}")
        running = model if self.device == "cpu" and self.dtype is None else copy.deepcopy(model).to(self.device, self.dtype)
        with evaluating(running):
            try:
                yield lambda batch: _each(self._input(batch).call(running), _home)
            finally:
                if Trait.ONNX in traits_of(running):
                    running.close()  # type: ignore[operator]  # an OnnxModel, whose threads would disturb the next measurement

    def _input(self, batch: Batch) -> Batch:
        there = Batch(batch.args, batch.kwargs).to(self.device)
        if self.dtype is None:
            return there
        return Batch(_each(there.args, self._cast), _each(dict(there.kwargs), self._cast))

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


def _home(tensor: Tensor) -> Tensor:
    tensor = tensor.cpu()
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply `change` to every tensor in nested mappings (including HF outputs), tuples and lists; other values stay."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return type(value)(**{key: _each(item, change) for key, item in value.items()}) if all(isinstance(key, str) for key in value) else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_each(item, change) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(_each(item, change) for item in value)
    return value
