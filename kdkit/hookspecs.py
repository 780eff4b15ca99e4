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
    >>> [stage.id for stage in kdkit_stages()]
    ['prune.channels']
    """


@hookspec
def kdkit_tasks() -> Iterable[Task]:
    """Kinds of task: how outputs and a batch become loss and metrics. Chosen by name: `%kd set --task depth`.

    >>> @hookimpl
    ... def kdkit_tasks():
    ...     from kdkit.tasks import Regression
    ...     return [Regression(name="depth")]
    >>> kdkit_tasks()
    [Regression('depth')]
    """


@hookspec
def kdkit_measures() -> Iterable[Measure]:
    """Figures of a version: name, unit, which way is better, and how it is measured. They stand in every report.

    >>> @hookimpl
    ... def kdkit_measures():
    ...     from kdkit.measure import Measure
    ...     return [Measure("layers", "", "lower", lambda subject: len(list(subject.model.modules())))]
    >>> kdkit_measures()[0].name
    'layers'
    """


@hookspec
def kdkit_backends() -> Iterable[Backend]:
    """Places where a version runs and is measured. Chosen by name: `%kd set --backend mps`.

    >>> @hookimpl
    ... def kdkit_backends():
    ...     from kdkit.backends.torch import TorchBackend
    ...     return [TorchBackend("mps", device="mps")]
    >>> kdkit_backends()
    [TorchBackend('mps')]
    """


@hookspec
def kdkit_trackers() -> Iterable[Any]:
    """Loggers of events (see `kdkit_event`): objects with a `name` and `log(event)`. Turned on by name: `%kd set --trackers printer`.

    One that raises is reported and does no harm. It lives as long as it is on in a session.

    >>> class Printer:
    ...     name = "printer"
    ...     def log(self, event): print(event.kind, event.stage)
    >>> @hookimpl
    ... def kdkit_trackers():
    ...     return [Printer()]
    >>> from kdkit.execution import Event
    >>> kdkit_trackers()[0].log(Event("finished", "prune mine"))
    finished prune mine
    """


@hookspec(firstresult=True)
def kdkit_adopt_model(obj: Any) -> nn.Module | None:
    """Make an nn.Module of an object that is none; None if it is not yours.

    A `KdError` says that it is yours, and what is wrong with it; any other error is reported, and the next plugin asked.

    >>> @hookimpl
    ... def kdkit_adopt_model(obj):
    ...     return getattr(obj, "module_", None)     # a fitted skorch estimator
    >>> kdkit_adopt_model("no estimator")
    """


@hookspec(firstresult=True)
def kdkit_adopt_data(obj: Any, batch_size: int) -> Data | None:
    """Make `Data` of an object that holds a data set; None if it is not yours.

    A `KdError` says that it is yours, and what is wrong with it; any other error is reported, and the next plugin asked.

    >>> @hookimpl
    ... def kdkit_adopt_data(obj, batch_size):
    ...     from kdkit.data import Data
    ...     if hasattr(obj, "to_batches"):
    ...         return Data(obj.to_batches, "made by to_batches")
    >>> kdkit_adopt_data("no table", 32)
    """


@hookspec(firstresult=True)
def kdkit_widget(stage: type[Stage], name: str, value: Any) -> Any:
    """A control of your own for one parameter of a form; None leaves it to the kit.

    >>> @hookimpl
    ... def kdkit_widget(stage, name, value):
    ...     if name == "colour":
    ...         import ipywidgets
    ...         return ipywidgets.ColorPicker(value=value)
    >>> kdkit_widget(None, "colour", "blue").value
    'blue'
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
    """Hear of what happens: `event.kind` is "started", "progress", "finished", "failed" or "cancelled"; see `kdkit.execution.Event`.

    One that raises is reported and does no harm.

    >>> @hookimpl
    ... def kdkit_event(event):
    ...     if event.kind == "finished": print(event.stage)
    >>> from kdkit.execution import Event
    >>> kdkit_event(Event("finished", "prune mine"))
    prune mine
    """


@hookspec
def kdkit_error_hints(error: BaseException, stage: Stage | None) -> Iterable[str]:
    """Hints for an error, a line each; one that raises is reported and does no harm.

    >>> @hookimpl
    ... def kdkit_error_hints(error):
    ...     if "CUDA out of memory" in str(error):
    ...         return ["try a smaller --batch-size"]
    ...     return []
    >>> kdkit_error_hints(RuntimeError("CUDA out of memory"))
    ['try a smaller --batch-size']
    """
