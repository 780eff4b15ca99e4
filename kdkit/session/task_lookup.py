"""Task lookup: the task of a session by name, with a loss or a metric of the user's own."""

from __future__ import annotations

import copy
from collections.abc import Callable

from kdkit.errors import KdError
from kdkit.plugins.manager import manager
from kdkit.tasks.custom import custom_task
from kdkit.tasks.task import Task


def tasks() -> dict[str, Task]:
    """All tasks by name, those of plugins too."""
    return {task.name: task for _, task in manager().contributions("kdkit_tasks")}


def task(kind: str | Task, loss: Callable | None = None, metric: Callable | None = None, better: str = "") -> Task:
    """A task by name, with the user's own loss and metric if given.

    Args:
        kind: a name, or a task.
        loss: `loss(prediction, labels)`: one value per item, or one number; torch's loss functions are called with reduction="none".
        metric: `metric(predictions, labels)` over the whole data set, on the CPU; functions with parameters `y_true` and
            `y_pred` or `y_score`, as in scikit-learn, are called with arrays under those names. A loss or metric whose first
            parameter is named `output` or `outputs` receives the model's own output, such as a dictionary.
        better: whether a "higher" or "lower" metric is better; default: from its attribute `better`, or its name.

    Raises:
        KdError: no task has that name, or an argument has the wrong type.

    >>> def hits(predictions, labels): return (predictions.argmax(-1) == labels).float().mean()
    >>> task("classification", metric=hits).metric
    'hits'
    """
    if isinstance(kind, str):
        found: Task = copy.copy(manager().named("kdkit_tasks", kind, "task"))
        found.reason, kind = "asked for by name", found
    if not isinstance(kind, Task):
        raise KdError(f"a {type(kind).__name__} is not a task", f"tasks: {', '.join(sorted(tasks()))}", "or pass an instance of a class derived from kdkit.Task")
    for name, function in (("loss", loss), ("metric", metric)):
        if function is not None and not callable(function):
            raise KdError(f"--{name} {function!r} can't be called", f"pass a function {name}(predictions, labels)")
    return kind if loss is None and metric is None else custom_task(kind, loss, metric, better)
