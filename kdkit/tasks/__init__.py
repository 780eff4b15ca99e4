"""Tasks: how outputs and a batch become loss and metrics.

A task never reduces: its losses stand one an item, (batch,), or one a token, (batch, tokens), and it tells which of them
count. Means are over what counts, so neither padding nor the way items are batched moves a figure.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

from kdkit.errors import KdError
from kdkit.hookspecs import hookimpl
from kdkit.tasks.classes import CausalLM, Classification, MultiLabel, TokenClassification
from kdkit.tasks.contract import IGNORED, Call, Task, tensor_of, wide
from kdkit.tasks.ctc import CTC
from kdkit.tasks.given import LOWER, given
from kdkit.tasks.guess import guess_task
from kdkit.tasks.numbers import Embedding, Regression, cosine, mean_pooled, nearest

__all__ = [
    "CTC", "IGNORED", "LOWER", "Call", "CausalLM", "Classification", "Embedding", "MultiLabel", "Regression", "Task", "TokenClassification",
    "cosine", "guess_task", "kdkit_tasks", "mean_pooled", "nearest", "task", "tasks", "tensor_of", "wide",
]  # fmt: skip


@hookimpl
def kdkit_tasks() -> Iterable[Task]:
    """The kit's own tasks."""
    return [Classification(), TokenClassification(), MultiLabel(), Regression(), Embedding(), CausalLM(), CTC()]


def tasks() -> dict[str, Task]:
    """All tasks by name, plugins' too."""
    from kdkit.plugins import manager

    return {task.name: task for _, task in manager().contributions("kdkit_tasks")}


def task(kind: str | Task, loss: Callable | None = None, metric: Callable | None = None, better: str = "") -> Task:
    """A task by name, with a loss and a metric of the user's own if given.

    Args:
        kind: a name, or a task.
        loss: `loss(prediction, labels)`: a number, or better one an item; torch's losses are asked for one an item.
        metric: `metric(predictions, labels)` over the whole set, on the CPU; functions that take `y_true` and `y_pred` or
            `y_score`, as scikit-learn's do, are called with those names and arrays.
        better: "higher" or "lower", of the metric; if not said, its attribute `better` or its name decides.

    Raises:
        KdError: no task has that name, or what was given is no task or no function.

    >>> def hits(predictions, labels): return (predictions.argmax(-1) == labels).float().mean()
    >>> task("classification", metric=hits).metric
    'hits'
    """
    if isinstance(kind, str):
        from kdkit.plugins import manager

        found: Task = copy.copy(manager().named("kdkit_tasks", kind, "task"))
        found.why, kind = "asked for by name", found
    if not isinstance(kind, Task):
        raise KdError(f"a {type(kind).__name__} is not a task", f"tasks: {', '.join(sorted(tasks()))}", "or pass an instance of a class derived from kdkit.Task")
    for name, function in (("loss", loss), ("metric", metric)):
        if function is not None and not callable(function):
            raise KdError(f"--{name} {function!r} can't be called", f"pass a function {name}(predictions, labels)")
    return kind if loss is None and metric is None else given(kind, loss, metric, better)
