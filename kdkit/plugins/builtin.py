"""What kdkit itself contributes through the hooks: backends, measures, tasks."""

from __future__ import annotations

from collections.abc import Iterable

from kdkit.backends.base import Backend
from kdkit.backends.onnxruntime import Int8Backend
from kdkit.backends.torch import TorchBackend
from kdkit.measurement.builtin import BUILT_IN
from kdkit.measurement.measure import Measure
from kdkit.plugins.hookspecs import hookimpl
from kdkit.tasks import (
    CTC,
    CausalLM,
    Classification,
    Detection,
    Embedding,
    MultiLabel,
    Regression,
    Segmentation,
    SequenceToSequence,
    Task,
    TokenClassification,
)


class Backends:
    """The backends cpu, cpu-bf16, cuda and int8."""

    @hookimpl
    def kdkit_backends(self) -> Iterable[Backend]:
        return [TorchBackend("cpu"), TorchBackend("cpu-bf16", dtype="bfloat16"), TorchBackend("cuda", device="cuda"), Int8Backend()]


class Measures:
    """kdkit's own measures."""

    @hookimpl
    def kdkit_measures(self) -> Iterable[Measure]:
        return BUILT_IN


class Tasks:
    """kdkit's own tasks."""

    @hookimpl
    def kdkit_tasks(self) -> Iterable[Task]:
        return [
            Classification(),
            TokenClassification(),
            Segmentation(),
            Detection(),
            MultiLabel(),
            Regression(),
            Embedding(),
            CausalLM(),
            SequenceToSequence(),
            CTC(),
        ]
