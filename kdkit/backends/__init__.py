"""Backends: places where a version runs and is measured, offered through the hook `kdkit_backends`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from kdkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from kdkit.data import Batch


class Backend:
    """A place where a model runs.

    Attributes:
        name: as the user says it, such as "cpu".
    """

    name: str = ""

    def unavailable(self) -> str:
        """Why this machine can't offer the backend; empty when it can."""
        return ""

    def refuses(self, model: nn.Module) -> str:
        """Why this backend can't run that model, with the line that helps; empty when it can."""
        return ""

    def runner(self, model: nn.Module) -> AbstractContextManager[Callable[[Batch], Any]]:
        """A context in which `call(batch)` gives the model's output, on the CPU, in eval mode and without gradients.

        Raises:
            KdError: the backend is not available here, or refuses the model.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


@hookimpl
def kdkit_backends() -> Iterable[Backend]:
    """cpu, cpu-bf16, cuda and int8."""
    from kdkit.backends.onnxruntime import Int8Backend
    from kdkit.backends.torch import TorchBackend

    return [TorchBackend("cpu"), TorchBackend("cpu-bf16", dtype="bfloat16"), TorchBackend("cuda", device="cuda"), Int8Backend()]
