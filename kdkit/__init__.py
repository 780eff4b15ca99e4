"""kdkit: model compression by distillation, pruning, quantization and more, in a notebook.

`%load_ext kdkit`, then `%kd help`; or `kdkit.Session` in plain Python.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__version__ = "0.1.0"

_HOMES = {
    "Session": "session",
    "Stage": "contract",
    "TrainStage": "contract",
    "Needs": "contract",
    "Trait": "contract",
    "Forecast": "contract",
    "param": "contract",
    "stage": "contract",
    "hookimpl": "hookspecs",
    "offer": "plugins",
    "KdError": "errors",
    "Batch": "data",
    "Data": "data",
    "Context": "context",
    "TrainPart": "training",
    "Term": "training",
    "Measure": "measure",
    "Task": "tasks",
    "Pipeline": "pipeline",
}

__all__ = [*_HOMES, "load_ipython_extension", "unload_ipython_extension"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kdkit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"kdkit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Add `%kd` and `%%kd` to a notebook: `%load_ext kdkit`."""
    from kdkit.notebook import load

    load(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Take out everything that loading put in: `%unload_ext kdkit`."""
    from kdkit.notebook import unload

    unload(shell)
