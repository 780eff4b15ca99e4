"""kdkit: model compression by distillation, pruning, quantization and more, in a notebook.

`%load_ext kdkit`, then `%kd help`; or `kdkit.Session` in plain Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

from kdkit.__version__ import __version__ as __version__
from kdkit.deprecated import register_renamed_modules
from kdkit.lazy import attach

register_renamed_modules()

_find, __dir__, _exported = attach(
    __name__,
    {
        "errors": ["KdError", "Cancelled", "did_you_mean"],
        "parameters.settings": ["param"],
        "parameters.search": ["Search"],
        "data": ["Batch", "Data"],
        "models": ["Trait"],
        "tasks": ["Task"],
        "measurement.measure": ["Measure"],
        "stages.stage": ["Stage", "Needs", "Forecast"],
        "stages.context": ["Context"],
        "stages.channel": ["Progress"],
        "plugins.hookspecs": ["hookimpl"],
        "plugins.decorators": ["stage", "offer"],
        "plugins.manager": ["known_stages"],
        "training.stage": ["TrainStage"],
        "training": ["TrainPart", "Term", "Step"],
        "pipelines.pipeline": ["Pipeline"],
        "session.adoption": ["adopt_data", "adopt_model", "adopt_teacher"],
        "session.session": ["Session"],
        "session.comparison": ["compare_with"],
        "session.comparison_report": ["PairedComparison"],
        "views": ["View"],
    },
)

__all__ = [*_exported, "load_ipython_extension", "unload_ipython_extension"]


def __getattr__(name: str) -> Any:
    return _find(name)


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Add `%kd` and `%%kd` to a notebook: `%load_ext kdkit`."""
    from kdkit.notebook import load

    load(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Remove everything that loading added: `%unload_ext kdkit`."""
    from kdkit.notebook import unload

    unload(shell)
