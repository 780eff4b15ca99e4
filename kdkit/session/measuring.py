"""Measuring: the report of a version, by the measures that the session chose."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import nn

from kdkit.data import Batch
from kdkit.guards.random_state import seeded
from kdkit.measurement.builtin import BUILT_IN
from kdkit.measurement.measure import Measure, Subject, measure
from kdkit.measurement.predictions import PredictionStore
from kdkit.measurement.report import Figure, Report
from kdkit.measurement.time_scale import TimeScale
from kdkit.models import Storage
from kdkit.plugins.manager import manager
from kdkit.session.evaluated_data import EvaluatedData
from kdkit.session.settings import SessionSettings
from kdkit.session.stored_form import bytes_saved
from kdkit.tasks import Task

if TYPE_CHECKING:
    from kdkit.backends.base import Backend


def choose_measures(names: Iterable[str | Measure] | None = None) -> list[Measure]:
    """Measures by name; without names all that plugins contribute, the kit's own first.

    Raises:
        KdError: no measure has that name.

    >>> [measure.name for measure in choose_measures(["parameters", "size"])]
    ['parameters', 'size']
    """
    if names is None:
        offered = sorted(manager().contributions("kdkit_measures"), key=lambda found: found[1] not in BUILT_IN)
        return [_with_source(*found) for found in offered]
    return [name if isinstance(name, Measure) else _with_source(*manager().offered("kdkit_measures", name)) for name in names]


def _with_source(plugin: str, measure: Measure) -> Measure:
    return measure if measure in BUILT_IN else replace(measure, source=manager().source(plugin))


def _call(measure: Measure, figures: Callable[[], list[Figure]]) -> list[Figure]:
    """Call a plugin's measure, and put back what it changes in the process; `Measuring.measure` restores the random state."""
    return manager().guarded(f"measure {measure.title}", figures, measure.home, random_state=False)


def choose_backend(name: str, model: nn.Module) -> Backend:
    """The backend of that name, or the CPU for a model that it refuses.

    Raises:
        KdError: there is no such backend.
    """
    chosen: Backend = SessionSettings.find_record("backend", name)
    return SessionSettings.find_record("backend", "cpu") if chosen.refuses(model) else chosen


@dataclass(frozen=True)
class Measuring:
    """Everything about a session that decides what a version's report says.

    Attributes:
        task: computes the metrics; None while there is no data.
        evaluated: the data to measure quality on.
        example: one batch of inputs; None if there is no data.
        backend: name of the backend to run on.
        original: the model that the agreement is measured with.
        measures: names of the measures; None for all.
        predictions: keeps the outputs of models.
        scale: of the times.
    """

    task: Task | None
    evaluated: EvaluatedData
    example: Batch | None
    backend: str
    original: nn.Module
    measures: tuple[str, ...] | None = None
    predictions: PredictionStore = field(default_factory=PredictionStore)
    scale: TimeScale = field(default_factory=TimeScale)

    def measure(self, model: nn.Module, check_cancelled: Callable[[], None] = lambda: None, storage: Storage | None = None) -> Report:
        """The report of a model, timed in turn with the original; its size is that of its stored form.

        Raises:
            Cancelled: by `check_cancelled`.
        """
        reference = None if model is self.original else self._subject(self.original)
        subject = replace(self._subject(model), reference=reference, check_cancelled=check_cancelled, bytes_saved=bytes_saved(model, storage))
        with seeded(0):
            return measure(subject, choose_measures(self.measures), _call)

    def _subject(self, model: nn.Module) -> Subject:
        return Subject(
            model,
            self.task,
            self.evaluated.data,
            self.example,
            choose_backend(self.backend, model),
            self.original,
            self.evaluated.name,
            self.evaluated.total,
            predictions=self.predictions,
            scale=self.scale,
        )
