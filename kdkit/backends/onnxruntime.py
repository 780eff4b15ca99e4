"""onnxruntime: models in ONNX, and the backend that runs the 8-bit ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from kdkit.backends import Backend
from kdkit.backends.export import to_onnx
from kdkit.backends.onnx_model import OnnxModel, open_session
from kdkit.data import Batch
from kdkit.errors import KdError

__all__ = ["Int8Backend", "OnnxModel", "open_session", "to_onnx"]


class Int8Backend(Backend):
    """Run 8-bit models in onnxruntime, on the CPU.

    >>> print(Int8Backend().refuses(nn.Linear(2, 2)))
    it holds no 8-bit weights; quantize first: %kd quantize static (convolutions) or %kd quantize dynamic (transformers)
    """

    name = "int8"

    def unavailable(self) -> str:
        """Why onnxruntime can't be used."""
        try:
            import onnxruntime  # noqa: F401
        except ImportError as error:
            return f"onnxruntime can't be imported ({error}): pip install onnxruntime"
        return ""

    def refuses(self, model: nn.Module) -> str:
        """Only graphs that hold 8-bit weights run here."""
        if isinstance(model, OnnxModel) and model.packed:
            return ""
        return "it holds no 8-bit weights; quantize first: %kd quantize static (convolutions) or %kd quantize dynamic (transformers)"

    @contextlib.contextmanager
    def runner(self, model: nn.Module) -> Iterator[Callable[[Batch], Any]]:
        """Run the graph; its session is closed at the end."""
        for reason in (self.unavailable(), self.refuses(model)):
            if reason:
                raise KdError(f"backend int8: {reason}")
        assert isinstance(model, OnnxModel)
        try:
            yield lambda batch: Batch(batch.args, batch.kwargs).to("cpu").call(model)
        finally:
            model.close()
