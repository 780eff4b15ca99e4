"""The hooks: everything a plugin can add to kdkit, on two screens.

A plugin is a module (or an object) named in its distribution's `[project.entry-points.kdkit]`; each hook it answers is a
function marked with `kdkit.hookimpl`. An implementation may take fewer arguments than are listed here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pluggy import HookimplMarker, HookspecMarker

if TYPE_CHECKING:
    from torch import nn

    from kdkit.backends import Backend
    from kdkit.context import Context
    from kdkit.contract import Stage
    from kdkit.data import Data
    from kdkit.measure import Measure
    from kdkit.tasks import Task

hookspec, hookimpl = HookspecMarker("kdkit"), HookimplMarker("kdkit")


# mypy: disable-error-code="empty-body"


@hookspec
def kdkit_stages() -> Iterable[type[Stage]]:
    """Techniques, as classes. Their modules import torch and kdkit at most; heavier packages wait until `apply`.

    >>> @hookimpl
    ... def kdkit_stages():
    ...     from kdkit_prune.channels import Channels
    ...     return [Channels]
    """


@hookspec
def kdkit_tasks() -> Iterable[Task]:
    """Kinds of task: how outputs and a batch become loss and metrics.

    >>> @hookimpl
    ... def kdkit_tasks():
    ...     from kdkit.tasks import Regression
    ...     return [Regression(name="depth")]
    """


@hookspec
def kdkit_measures() -> Iterable[Measure]:
    """Figures of a version: name, unit, which way is better, and how it is measured.

    >>> @hookimpl
    ... def kdkit_measures():
    ...     from kdkit.measure import Measure
    ...     return [Measure("layers", "", "lower", lambda subject: len(list(subject.model.modules())))]
    """


@hookspec
def kdkit_backends() -> Iterable[Backend]:
    """Places where a version runs and is measured.

    >>> @hookimpl
    ... def kdkit_backends():
    ...     from kdkit.backends.torch import TorchBackend
    ...     return [TorchBackend("mps", device="mps")]
    """


@hookspec
def kdkit_trackers() -> Iterable[Any]:
    """Loggers of events: objects with a `name` and `log(event)`, asked only while the user has turned them on.

    >>> @hookimpl
    ... def kdkit_trackers():
    ...     class Printer:
    ...         name = "printer"
    ...         def log(self, event): print(event)
    ...     return [Printer()]
    """


@hookspec(firstresult=True)
def kdkit_adopt_model(obj: Any) -> nn.Module | None:
    """Make an nn.Module of an object that is none; None if it is not yours.

    >>> @hookimpl
    ... def kdkit_adopt_model(obj):
    ...     return getattr(obj, "module_", None)     # a fitted skorch estimator
    """


@hookspec(firstresult=True)
def kdkit_adopt_data(obj: Any, batch_size: int) -> Data | None:
    """Make `Data` of an object that holds a data set; None if it is not yours.

    >>> @hookimpl
    ... def kdkit_adopt_data(obj, batch_size):
    ...     from kdkit.data import Data
    ...     if hasattr(obj, "to_batches"):
    ...         return Data(obj.to_batches, "made by to_batches")
    """


@hookspec(firstresult=True)
def kdkit_widget(stage: type[Stage], name: str, value: Any) -> Any:
    """A control of your own for one parameter of a form; None leaves it to the kit.

    >>> @hookimpl
    ... def kdkit_widget(stage, name, value):
    ...     if name == "colour":
    ...         import ipywidgets
    ...         return ipywidgets.ColorPicker(value=value)
    """


@hookspec(firstresult=True)
def kdkit_run_stage(stage: Stage, model: nn.Module, context: Context) -> nn.Module | None:
    """Run one stage on a private copy of the model: the protocol. The kit answers last, with `stage.apply`.

    Timing, tracking or remote execution are wrappers around it:

    >>> @hookimpl(wrapper=True)
    ... def kdkit_run_stage(stage):
    ...     print("before", stage.id)
    ...     return (yield)
    """


@hookspec
def kdkit_event(event: Any) -> None:
    """Hear of what happens: `event.kind` is "started", "progress", "finished", "failed" or "cancelled".

    One that raises is reported and does no harm.

    >>> @hookimpl
    ... def kdkit_event(event):
    ...     if event.kind == "finished": print(event.stage)
    """


@hookspec
def kdkit_error_hints(error: BaseException, stage: Stage | None) -> Iterable[str]:
    """Hints for an error, a line each; one that raises is reported and does no harm.

    >>> @hookimpl
    ... def kdkit_error_hints(error):
    ...     if "CUDA out of memory" in str(error):
    ...         return ["try a smaller --batch-size"]
    ...     return []
    """
