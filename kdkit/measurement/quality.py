"""Quality: the metrics of the task on the evaluation data, and the agreement with the original, from one pass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch.utils._pytree import tree_leaves

from kdkit.data import Data
from kdkit.data.datasets import BatchList
from kdkit.errors import KdError
from kdkit.measurement.evaluation_pass import EvaluationPass
from kdkit.measurement.jackknife import GROUPS, half_width_of_groups, half_widths
from kdkit.measurement.measure import Subject
from kdkit.measurement.report import Figure
from kdkit.tasks import LOWER, Call, Task

OUTPUTS = "the model's outputs"


def measure_quality(subject: Subject) -> list[Figure]:
    """All metrics of the task on the evaluation data, the main metric first; none without data.

    Raises:
        KdError: there are no labels, none that counts, or a metric is not finite.
    """
    task, data = subject.task, subject.data
    if data is None or task is None:
        return []
    passed = subject.evaluation_pass
    with passed.opened():
        values = task.evaluate(passed, data)
        if not all(map(math.isfinite, values.values())):
            raise _not_finite(task, values, passed.answer, data)
    passed.is_complete = passed.items > 0
    if values and task.remark:
        subject.notes.append(task.remark)
    margins = _margins(subject, values)
    ways = {name: "lower" if LOWER & set(name.split("_")) else "higher" for name in values} | {task.metric: task.better}
    return [
        Figure(
            name,
            values[name],
            "",
            ways[name],
            n=passed.items,
            headline=name in (task.metric, *task.headlines),
            data=subject.data_name,
            total=subject.total,
            margin=margins.get(name),
        )
        for name in sorted(values, key=lambda name: name != task.metric)
    ]


def measure_agreement(subject: Subject) -> Figure | None:
    """The mean agreement of the version with the original on the evaluation data; the original runs in torch, unchanged."""
    task, data, passed = subject.task, subject.data, subject.evaluation_pass
    if data is None or task is None or subject.original is None:
        return None
    if not passed.is_complete:
        passed.begin()
        with passed.opened():
            for batch in data.batches():
                passed(batch)
    if passed.failure is not None:
        raise passed.failure
    count = sum(values.numel() for values in passed.same)
    if not count:
        return None
    sums = [({"agreement": values.double().sum()}, values.numel()) for values in passed.same]
    margin = half_widths(sums, lambda means: {"agreement": float(means["agreement"])}, _share(subject)).get("agreement") if subject.total else None
    mean = sum(float(batch["agreement"]) for batch, _ in sums) / count
    return Figure("agreement", mean, n=count, data=subject.data_name, total=subject.total, margin=margin)


def _share(subject: Subject) -> float:
    """By how much an interval is narrower because the data are finite."""
    return math.sqrt(max(0.0, 1 - subject.evaluation_pass.items / subject.total)) if subject.total else 1.0


def _margins(subject: Subject, values: Mapping[str, float]) -> dict[str, float]:
    """For a sample, half the width of each figure's 95 % confidence interval."""
    task, data, passed = subject.task, subject.data, subject.evaluation_pass
    if not subject.total or task is None or data is None or not passed.sums:
        return {}
    found = half_widths(passed.sums, task.summary, _share(subject))
    others = [name for name in values if name not in found]
    if not others:
        return found
    groups = _figures_of_groups(task, passed, data)
    return found | {name: half_width_of_groups([group[name] for group in groups], _share(subject)) for name in others}


def _figures_of_groups(task: Task, passed: EvaluationPass, data: Data) -> list[dict[str, float]]:
    """The figures of each of several groups of batches alone, from outputs that were kept."""
    size = -(-len(passed.sums) // GROUPS)
    batches = data.batches()
    figures = []
    with passed.opened():
        while group := list(itertools.islice(batches, size)):
            figures.append(task.evaluate(passed.answer, BatchList(group, data.reason)))
    return figures


def _not_finite(task: Task, values: Mapping[str, float], call: Call, data: Data) -> KdError:
    """An error that names the first inputs, labels or outputs that are nan or infinite."""
    name, value = next((name, value) for name, value in values.items() if not math.isfinite(value))
    first = 0
    for batch in data.batches():
        parts = [("the inputs", batch.args), ("the inputs", batch.kwargs), ("the labels", batch.labels)]
        with torch.no_grad():
            found = [(what, tree_leaves(part)) for what, part in parts] + [(OUTPUTS, [task.prediction(call(batch), batch)])]
        for what, tensors in found:
            for tensor in tensors:
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and len(tensor) == batch.size and not torch.isfinite(tensor).all():
                    wrong = (~torch.isfinite(tensor)).flatten(1).any(1) if tensor.ndim > 1 else ~torch.isfinite(tensor)
                    number = first + int(wrong.nonzero()[0])
                    cause = f"{what} of item {number} of the data are nan or infinite"
                    return KdError(f"{task.name}: the {name} is {value}, because {cause}", "leave the item out" if what != OUTPUTS else "check the model on that item")
        first += batch.size
    return KdError(f"{task.name}: the {name} is {value}", "some loss is too large for a number")
