"""The hooks: everything a plugin can add to kdkit, on two screens.

A plugin is a module (or an object) named in its distribution's `[project.entry-points.kdkit]`; it implements a hook with a
function marked with `kdkit.hookimpl`. An implementation may take fewer arguments than are listed here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pluggy import HookimplMarker, HookspecMarker

if TYPE_CHECKING:
    from torch import nn

    from kdkit.backends.base import Backend
    from kdkit.data import Data
    from kdkit.measurement.measure import Measure
    from kdkit.stages.context import Context
    from kdkit.stages.run import Outcome
    from kdkit.stages.stage import Stage
    from kdkit.storage.codecs import Codec
    from kdkit.tasks import Task

hookspec, hookimpl = HookspecMarker("kdkit"), HookimplMarker("kdkit")


# mypy: disable-error-code="empty-body"


@hookspec
def kdkit_stages() -> Iterable[type[Stage]]:
    """Techniques, as classes. Their modules import torch and kdkit at most, and heavier packages inside `apply`.

    >>> @hookimpl
    ... def kdkit_stages():
    ...     from kdkit_prune.channels import Channels
    ...     return [Channels]
    >>> [stage.id for stage in kdkit_stages()]
    ['prune.channels']
    """


@hookspec
def kdkit_tasks() -> Iterable[Task]:
    """Tasks, which turn outputs and a batch into a loss and metrics. The user selects one by name: `%kd set --task depth`.

    >>> @hookimpl
    ... def kdkit_tasks():
    ...     from kdkit.tasks import Regression
    ...     return [Regression(name="depth")]
    >>> kdkit_tasks()
    [Regression('depth')]
    """


@hookspec
def kdkit_measures() -> Iterable[Measure]:
    """Figures of a version, for every report: name, unit, whether higher or lower is better, and how to measure it.

    The models and data of the subject are copies. A measure that returns no number is named in the report's notes.

    >>> @hookimpl
    ... def kdkit_measures():
    ...     from kdkit.measurement.measure import Measure
    ...     return [Measure("layers", "", "lower", lambda subject: len(list(subject.model.modules())))]
    >>> kdkit_measures()[0].name
    'layers'
    """


@hookspec
def kdkit_backends() -> Iterable[Backend]:
    """Backends, on which a version runs and is measured. The user selects one by name: `%kd set --backend mps`.

    >>> @hookimpl
    ... def kdkit_backends():
    ...     from kdkit.backends.torch import TorchBackend
    ...     return [TorchBackend("mps", device="mps")]
    >>> kdkit_backends()
    [TorchBackend('mps')]
    """


@hookspec
def kdkit_codecs() -> Iterable[Codec]:
    """Codecs, in which a saved folder holds the weights of a version. A stage selects one by name: `Stage.storage`.

    >>> @hookimpl
    ... def kdkit_codecs():
    ...     from kdkit.storage import Codec
    ...     return [Codec("same", lambda tensor: ({"numbers": tensor}, {}), lambda parts, data: parts["numbers"])]
    >>> kdkit_codecs()[0].name
    'same'
    """


@hookspec
def kdkit_trackers() -> Iterable[Any]:
    """Loggers of events (see `kdkit_event`): objects with a `name` and `log(event)`. The user turns them on by name: `%kd set --trackers printer`.

    A tracker that raises is reported and skipped. A session keeps the same object as long as it is on.

    >>> class Printer:
    ...     name = "printer"
    ...     def log(self, event): print(event.kind, event.stage)
    >>> @hookimpl
    ... def kdkit_trackers():
    ...     return [Printer()]
    >>> from kdkit.session.events import Event
    >>> kdkit_trackers()[0].log(Event("finished", "prune mine"))
    finished prune mine
    """


@hookspec
def kdkit_views() -> Iterable[type]:
    """Views of a session's versions, as classes derived from `kdkit.View`. Each brings a verb, its form and its help.

    The module that declares one imports neither torch nor what draws it: `of` imports them.

    >>> @hookimpl
    ... def kdkit_views():
    ...     from kdkit import View
    ...     from kdkit.display import Table
    ...     class Waterfall(View):
    ...         "How the size changes from version to version."
    ...         def of(self, session):
    ...             return Table(["version", "size"], [[version.name, version["size"]] for version in session.versions])
    ...     return [Waterfall]
    >>> kdkit_views()[0].name
    'waterfall'
    """


@hookspec(firstresult=True)
def kdkit_adopt_model(obj: Any) -> nn.Module | None:
    """Convert an object to an nn.Module; return None if it does not belong to your plugin.

    Raise `KdError` if it does and is invalid. Any other error is reported, and kdkit tries the next plugin.

    >>> @hookimpl
    ... def kdkit_adopt_model(obj):
    ...     return getattr(obj, "module_", None)     # a fitted skorch estimator
    >>> kdkit_adopt_model("no estimator")
    """


@hookspec(firstresult=True)
def kdkit_adopt_data(obj: Any, batch_size: int) -> Data | None:
    """Convert an object to `Data`; return None if it does not belong to your plugin.

    Raise `KdError` if it does and is invalid. Any other error is reported, and kdkit tries the next plugin.

    >>> @hookimpl
    ... def kdkit_adopt_data(obj, batch_size):
    ...     from kdkit.data import Data
    ...     if hasattr(obj, "to_batches"):
    ...         return Data(obj.to_batches, "from to_batches")
    >>> kdkit_adopt_data("no table", 32)
    """


@hookspec(firstresult=True)
def kdkit_widget(stage: type[Stage], name: str, value: Any) -> Any:
    """A widget for one parameter of a form; None for kdkit's own.

    >>> @hookimpl
    ... def kdkit_widget(stage, name, value):
    ...     if name == "colour":
    ...         import ipywidgets
    ...         return ipywidgets.ColorPicker(value=value)
    >>> kdkit_widget(None, "colour", "blue").value
    'blue'
    """


@hookspec(firstresult=True)
def kdkit_run_stage(stage: Stage, model: nn.Module, context: Context) -> nn.Module | Outcome | None:
    """Run one stage on a private copy of the model. kdkit's own implementation comes last and calls `stage.apply`.

    Return the new model; or an `Outcome` with the notes and attachments of a stage that ran elsewhere (see
    `kdkit.stages.remote`). Timing and tracking are wrappers:

    >>> @hookimpl(wrapper=True)
    ... def kdkit_run_stage(stage):
    ...     print("before", stage.id)
    ...     return (yield)
    """


@hookspec
def kdkit_event(event: Any) -> None:
    """Called for each stage event; `event.kind` is "started", "progress", "finished", "failed" or "cancelled". See `kdkit.session.events.Event`.

    Each use of `event.version.model` makes a copy. Return nothing. An implementation that raises is reported and skipped.

    >>> @hookimpl
    ... def kdkit_event(event):
    ...     if event.kind == "finished": print(event.stage)
    >>> from kdkit.session.events import Event
    >>> kdkit_event(Event("finished", "prune mine"))
    prune mine
    """


@hookspec
def kdkit_error_hints(error: BaseException, stage: Stage | None) -> Iterable[str]:
    """Hints for an error, a line each. An implementation that raises is reported and skipped.

    >>> @hookimpl
    ... def kdkit_error_hints(error):
    ...     if "CUDA out of memory" in str(error):
    ...         return ["try a smaller --batch-size"]
    ...     return []
    >>> kdkit_error_hints(RuntimeError("CUDA out of memory"))
    ['try a smaller --batch-size']
    """
