"""The backend that runs 8-bit models in onnxruntime."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from kdkit.backends.base import Backend
from kdkit.backends.onnx.export import to_onnx
from kdkit.backends.onnx.model import OnnxModel, open_session
from kdkit.data import Batch
from kdkit.errors import KdError

__all__ = ["Int8Backend", "OnnxModel", "open_session", "to_onnx"]


class Int8Backend(Backend):
    """Run 8-bit models in onnxruntime, on the CPU.

    >>> print(Int8Backend().refuses(nn.Linear(2, 2)))
    it has no 8-bit weights; quantize first: %kd quantize static (convolutions) or %kd quantize dynamic (transformers)
    """

    name = "int8"

    def unavailable(self) -> str:
        """Why onnxruntime can't be imported; empty if it can."""
        try:
            import onnxruntime  # noqa: F401
        except ImportError as error:
            return f"onnxruntime can't be imported ({error}): pip install onnxruntime"
        return ""

    def refuses(self, model: nn.Module) -> str:
        """Refuse models other than ONNX graphs with 8-bit weights."""
        if isinstance(model, OnnxModel) and model.packed:
            return ""
        return "it has no 8-bit weights; quantize first: %kd quantize static (convolutions) or %kd quantize dynamic (transformers)"

    @contextlib.contextmanager
    def runner(self, model: nn.Module) -> Iterator[Callable[[Batch], Any]]:
        """Run the graph; close its session at the end."""
        for reason in (self.unavailable(), self.refuses(model)):
            if reason:
                raise KdError(f"backend int8: {reason}")
        assert isinstance(model, OnnxModel)
        try:
            yield lambda batch: Batch(batch.args, batch.kwargs).to("cpu").call(model)
        finally:
            model.close()
