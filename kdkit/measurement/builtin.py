"""The built-in measures."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from kdkit.data import Batch
from kdkit.data.batch import resize
from kdkit.measurement.energy import nvml, rapl
from kdkit.measurement.macs import count_macs
from kdkit.measurement.mean_average_precision import measure_map
from kdkit.measurement.measure import Measure, Subject
from kdkit.measurement.quality import measure_agreement, measure_quality
from kdkit.measurement.report import Figure
from kdkit.measurement.rouge import measure_rouge
from kdkit.measurement.size import count_parameters, size_bytes
from kdkit.measurement.timing import MANY, Timing
from kdkit.models.evaluation import device_of
from kdkit.models.traits import Trait


def _latency(subject: Subject) -> Figure | None:
    return _timed(subject, subject.one_item, "latency", "ms", "lower", 1000)


def _latency_of_many(subject: Subject) -> Figure | None:
    return _timed(subject, subject.many_items, "latency_32", "ms", "lower", 1000)


def _throughput(subject: Subject) -> Figure | None:
    found = _timed(subject, subject.many_items, "throughput", "items/s", "higher", 1)
    return None if found is None else replace(found, value=MANY / found.value, ratio=1 / found.ratio if found.ratio else None)


def _timed(subject: Subject, timing: Timing | None, name: str, unit: str, better: str, per_second: float) -> Figure | None:
    if timing is None:
        return None
    return Figure(
        name,
        per_second * timing.seconds,
        unit,
        better,
        n=timing.n,
        ratio=timing.ratio,
        reference="" if timing.ratio is None else subject.reference_backend,
        spread=timing.spread,
        threads=None if subject.on_cuda else torch.get_num_threads(),
        disturbed=not (timing.is_steady or subject.on_cuda),
    )


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
    Measure("quality", "", "higher", measure_quality),
    Measure("map", "", "higher", measure_map),
    Measure("rouge_l", "", "higher", measure_rouge),
    Measure("agreement", "", "higher", measure_agreement),
    Measure("parameters", "", "lower", lambda subject: count_parameters(subject.model)),
    Measure("size", "B", "lower", lambda subject: size_bytes(subject.model) - subject.bytes_saved, real_only=True),
    Measure("macs", "", "lower", _macs, real_only=True),
    Measure("memory", "B", "lower", _memory, real_only=True),
    Measure("moved", "B", "lower", _moved, real_only=True, headline=False),
    Measure("latency", "ms", "lower", _latency, real_only=True),
    Measure("latency_32", "ms", "lower", _latency_of_many, real_only=True, headline=False),
    Measure("throughput", "items/s", "higher", _throughput, real_only=True, headline=False),
    Measure("energy", "J", "lower", _energy, real_only=True),
)
