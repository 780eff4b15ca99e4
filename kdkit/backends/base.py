"""The backend interface: where kdkit runs and measures a model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from kdkit.data import Batch


class Backend:
    """A place where a model runs.

    Attributes:
        name: the name in options, such as "cpu".
    """

    name: str = ""

    def unavailable(self) -> str:
        """Why the backend is unavailable on this machine; empty if it is available."""
        return ""

    def refuses(self, model: nn.Module) -> str:
        """Why this backend can't run a model, and what the user can do; empty if it can."""
        return ""

    def runner(self, model: nn.Module) -> AbstractContextManager[Callable[[Batch], Any]]:
        """A context manager that yields `call(batch)`: it returns the model's output on the CPU, in eval mode and without gradients.

        Raises:
            KdError: the backend is not available here, or refuses the model.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"
