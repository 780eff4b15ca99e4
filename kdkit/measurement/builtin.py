"""The built-in measures."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from kdkit.data import Batch, Data
from kdkit.data.batch import resize
from kdkit.errors import KdError
from kdkit.measurement.energy import nvml, rapl
from kdkit.measurement.macs import count_macs
from kdkit.measurement.mean_average_precision import measure_map
from kdkit.measurement.measure import Measure, Subject
from kdkit.measurement.report import Figure
from kdkit.measurement.rouge import measure_rouge
from kdkit.measurement.size import count_parameters, size_bytes
from kdkit.measurement.timing import MANY, Timing
from kdkit.models.evaluation import device_of, evaluating
from kdkit.models.traits import Trait
from kdkit.tasks import LOWER, Call, Task


def _latency(name: str, timing: Timing | None) -> Figure | None:
    return None if timing is None else Figure(name, 1000 * timing.seconds, "ms", "lower", n=timing.n, ratio=timing.ratio)


def _throughput(subject: Subject) -> Figure | None:
    timing = subject.many_items
    if timing is None:
        return None
    return Figure("throughput", MANY / timing.seconds, "items/s", "higher", n=timing.n, ratio=1 / timing.ratio if timing.ratio else None)


# quality

OUTPUTS = "the model's outputs"


def _quality(subject: Subject) -> list[Figure]:
    """All metrics of the task on the evaluation data, the main metric first."""
    task, data = subject.task, subject.data
    if data is None or task is None:
        return []
    items = 0
    with subject.running() as call:

        def counted(batch: Batch) -> Any:
            nonlocal items
            subject.check_cancelled()
            items += batch.size
            return call(batch)

        values = task.evaluate(counted, data)
        if not all(map(math.isfinite, values.values())):
            raise _not_finite(task, values, call, data)
    if values and task.remark:
        subject.notes.append(task.remark)
    ways = {name: "lower" if LOWER & set(name.split("_")) else "higher" for name in values} | {task.metric: task.better}
    return [
        Figure(name, values[name], "", ways[name], n=items, headline=name in (task.metric, *task.headlines))
        for name in sorted(values, key=lambda name: name != task.metric)
    ]


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


def _agreement(subject: Subject) -> Figure | None:
    """The mean agreement of the version with the original on the evaluation data; the original runs in torch, unchanged."""
    task, original = subject.task, subject.original
    if subject.data is None or task is None or original is None:
        return None
    total, count = 0.0, 0
    with subject.running() as call, evaluating(original):
        for batch in subject.data.batches():
            subject.check_cancelled()
            same = task.agreeing(call(batch), _on_cpu(batch.to(device_of(original)).call(original)), batch)
            total, count = total + same.double().sum().item(), count + same.numel()
    return Figure("agreement", total / count, n=count) if count else None


def _on_cpu(output: Any) -> Any:
    return tree_map(lambda item: item.cpu() if isinstance(item, torch.Tensor) else item, output)


# memory and energy


def _macs(subject: Subject) -> int | None:
    return None if subject.example is None else count_macs(subject.model, resize(subject.example, 1))


def _memory(subject: Subject) -> int | None:
    if subject.on_cuda and subject.example is not None and Trait.ONNX not in subject.traits:
        return _cuda_peak(subject, resize(subject.example, 1))
    return subject.traffic.peak_bytes if subject.traffic else None


def _cuda_peak(subject: Subject, batch: Batch) -> int:
    """Peak bytes of torch's CUDA allocator for the model during a call, weights included."""
    there = size_bytes(subject.model) if device_of(subject.model).type == "cuda" else 0
    before = torch.cuda.memory_allocated()
    with subject.running() as call:
        call(batch)
        torch.cuda.reset_peak_memory_stats()
        call(batch)
        return torch.cuda.max_memory_allocated() - before + there


def _moved(subject: Subject) -> int | None:
    return subject.traffic.moved_bytes if subject.traffic else None


def _energy(subject: Subject) -> Figure | None:
    """Joules per call with one item, of the complete processor or GPU that the backend uses; None if the machine has no energy counter."""
    meter = nvml() if subject.on_cuda else rapl()
    if meter is None or subject.example is None:
        return None
    batch, calls = resize(subject.example, 1), 0
    with subject.running() as call:
        call(batch)
        before, began = meter(), time.perf_counter()
        while not calls or time.perf_counter() - began < subject.budget_s:
            call(batch)
            calls += 1
        return Figure("energy", (meter() - before) / calls, "J", "lower", n=calls)


BUILT_IN = (
    Measure("quality", "", "higher", _quality),
    Measure("map", "", "higher", measure_map),
    Measure("rouge_l", "", "higher", measure_rouge),
    Measure("agreement", "", "higher", _agreement),
    Measure("parameters", "", "lower", lambda subject: count_parameters(subject.model)),
    Measure("size", "B", "lower", lambda subject: size_bytes(subject.model) - subject.bytes_saved, real_only=True),
    Measure("macs", "", "lower", _macs, real_only=True),
    Measure("memory", "B", "lower", _memory, real_only=True),
    Measure("moved", "B", "lower", _moved, real_only=True, headline=False),
    Measure("latency", "ms", "lower", lambda subject: _latency("latency", subject.one_item), real_only=True),
    Measure("latency_32", "ms", "lower", lambda subject: _latency("latency_32", subject.many_items), real_only=True, headline=False),
    Measure("throughput", "items/s", "higher", _throughput, real_only=True, headline=False),
    Measure("energy", "J", "lower", _energy, real_only=True),
)
