"""Measure a version's cost and quality; each figure has a unit, a backend, and a mark if it is simulated.

A figure that can't be measured is absent, never estimated. If a measure fails, the report's notes name it and the other measures
still run. While masks or fake-quant are pending, size and speed are the values that the final model *would* have, marked as simulated.

Times are medians of repeated calls. The calls of a version and of the original alternate, so that their ratio is reliable also on a
busy machine, and all times of a session are on one scale. Differences under 5 % are noise.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from kdkit.data import Batch, Data
from kdkit.data.batch import resize
from kdkit.errors import Cancelled, KdError
from kdkit.guards import explain_error
from kdkit.guards.interrupts import package_of, raise_interrupt
from kdkit.measurement.evaluation_pass import EvaluationPass
from kdkit.measurement.memory_traffic import Traffic, traffic
from kdkit.measurement.predictions import PredictionStore
from kdkit.measurement.report import Figure, Report
from kdkit.measurement.time_scale import TimeScale
from kdkit.measurement.timing import BUDGET_S, MANY, Timing, interleave
from kdkit.models.copies import private_copy
from kdkit.models.evaluation import device_of, evaluating
from kdkit.models.traits import SIMULATED, Trait, traits_of
from kdkit.renaming import warn_renamed
from kdkit.tasks.custom import in_memory

if TYPE_CHECKING:
    from kdkit.backends.base import Backend
    from kdkit.tasks import Task


ORIGINAL_PLACE = "cpu"
"""Where the original runs when others are compared with it: in torch, unchanged, as on the backend of that name."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A version and what is needed to measure it.

    Attributes:
        model: the version's model.
        task: the task that evaluates its outputs; None without data.
        data: the evaluation data, if any.
        data_name: their name.
        total: how many items all the evaluation data have, if `data` is a sample of them.
        example: a batch of inputs, if any.
        backend: the backend that runs the model.
        original: the session's first model; the version's agreement with it is measured.
        reference: the original, to be timed alternately with the version; None for the original itself.
        scale: of the times.
        budget_s: seconds to spend on each timing.
        predictions: keeps the outputs of models.
        measured: names of the measures that are asked for; empty: unknown.
        bytes_saved: how many bytes the stored form of the model saves, if a codec encodes it.
        notes: notes of the measures, for the report.
        check_cancelled: called before each measure and each evaluated batch; raises `Cancelled` to stop.
    """

    model: nn.Module
    task: Task | None
    data: Data | None
    example: Batch | None
    backend: Backend
    original: nn.Module | None = None
    data_name: str = ""
    total: int | None = None
    reference: Subject | None = None
    scale: TimeScale = field(default_factory=TimeScale)
    budget_s: float = BUDGET_S
    predictions: PredictionStore = field(default_factory=PredictionStore)
    measured: frozenset[str] = frozenset()
    bytes_saved: int = 0
    notes: list[str] = field(default_factory=list)
    check_cancelled: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def running(self) -> Iterator[Callable[[Batch], Any]]:
        """The model on its backend, as a function: batch -> output on the CPU."""
        with self.backend.runner(self.model) as call:
            yield call

    def answering(self) -> AbstractContextManager[Callable[[Batch], Any]]:
        """As `running`, but a model runs only for batches whose outputs were not kept."""
        return self.predictions.answering(self.model, self.backend.name, self.running)

    @contextlib.contextmanager
    def _running_original(self) -> Iterator[Callable[[Batch], Any]]:
        original = self.original
        assert original is not None  # it is opened only if there is one
        with evaluating(original):
            yield lambda batch: tree_map(in_memory, batch.to(device_of(original)).call(original))

    def _original_answering(self) -> AbstractContextManager[Callable[[Batch], Any]]:
        assert self.original is not None
        return self.predictions.answering(self.original, ORIGINAL_PLACE, self._running_original)

    @cached_property
    def evaluation_pass(self) -> EvaluationPass:
        """The pass through the evaluation data."""
        compared = self.original is not None and "agreement" in self.measured
        return EvaluationPass(self.task, self.answering, self._original_answering if compared else None, self.check_cancelled, self.total is not None)

    @cached_property
    def traits(self) -> frozenset[str]:
        """The traits of the model."""
        return traits_of(self.model)

    @property
    def on_cuda(self) -> bool:
        """Whether the backend computes on CUDA."""
        return str(getattr(self.backend, "device", "")).startswith("cuda")

    @cached_property
    def traffic(self) -> Traffic | None:
        """The memory traffic of one call with one item; None if torch does not run the call."""
        if self.example is None or Trait.ONNX in self.traits:
            return None
        with self.running() as call:
            return traffic(call, resize(self.example, 1), self.model)

    @cached_property
    def one_item(self) -> Timing | None:
        """Timing of calls with one item."""
        return self._timed(1)

    @cached_property
    def many_items(self) -> Timing | None:
        """Timing of calls with `MANY` items."""
        return self._timed(MANY)

    def _timed(self, size: int) -> Timing | None:
        if self.example is None:
            return None
        batch = resize(self.example, size)
        with contextlib.ExitStack() as stack:
            calls = [stack.enter_context(self.running())]
            if self.reference is not None:
                with self._skip_on_error("no ratio of the latency to the original's"):
                    call = stack.enter_context(self.reference.running())
                    call(batch)
                    calls.append(call)
            timing = interleave([partial(call, batch) for call in calls], self.budget_s)
        if self.model is self.original:
            timing = replace(timing, ratio=1.0)
        return timing if timing.ratio is None else self.scale.placed(timing, self.reference_backend, size)

    @property
    def parent(self) -> Subject | None:
        """Deprecated: versions are timed alternately with the original, `reference`."""
        warn_renamed("Subject.parent", "reference")
        return self.reference

    @property
    def reference_backend(self) -> str:
        """The backend on which the original is timed."""
        return (self.reference or self).backend.name

    @contextlib.contextmanager
    def _skip_on_error(self, what: str, home: str = "") -> Iterator[None]:
        """Note an error and continue; `Cancelled` and an interrupt of the user are raised again.

        Args:
            home: the package whose code runs.
        """
        handled = sys.exception()
        try:
            yield
        except Cancelled:
            raise
        except BaseException as error:  # a plugin's measure may raise anything, SystemExit too
            raise_interrupt(error, home, handled)
            remedy = getattr(error, "hints", ())[:1]
            self.notes.append("; ".join((f"{what}: {explain_error(error, home)}", *remedy)))


class PrivateSubject(Subject):
    """A subject as a plugin's measure receives it: models and data are copies, made when they are used for the first time.

    A measure that switches to train mode, changes weights or inputs, or leaves hooks, changes only its own copies. The timings and the
    memory traffic are those of the subject itself.
    """

    @classmethod
    def of(cls, subject: Subject) -> PrivateSubject:
        """The copy of a subject; it adds its notes to those of the subject."""
        private = object.__new__(cls)
        vars(private).update({name: value for name, value in vars(subject).items() if name not in vars(cls)}, _live=subject)
        return private

    @cached_property
    def model(self) -> nn.Module:
        return private_copy(self._live.model)

    @cached_property
    def original(self) -> nn.Module | None:
        return None if self._live.original is None else private_copy(self._live.original)

    @cached_property
    def reference(self) -> Subject | None:
        return None if self._live.reference is None else PrivateSubject.of(self._live.reference)

    @cached_property
    def data(self) -> Data | None:
        live = self._live.data
        return None if live is None else Data(lambda: (batch.clone() for batch in live.batches()), live.reason, live.items, live.numbered)

    @cached_property
    def example(self) -> Batch | None:
        return None if self._live.example is None else self._live.example.clone()

    def answering(self) -> AbstractContextManager[Callable[[Batch], Any]]:
        return self._live.answering() if self._live else super().answering()

    @cached_property
    def traits(self) -> frozenset[str]:
        return self._live.traits if self._live else super().traits

    @cached_property
    def traffic(self) -> Traffic | None:
        return self._live.traffic if self._live else super().traffic

    @cached_property
    def one_item(self) -> Timing | None:
        return self._live.one_item if self._live else super().one_item

    @cached_property
    def many_items(self) -> Timing | None:
        return self._live.many_items if self._live else super().many_items

    @property
    def _live(self) -> Any:
        """The subject itself; None in what `dataclasses.replace` makes, which has all it needs."""
        return vars(self).get("_live")


@dataclass(frozen=True)
class Measure:
    """One way to measure a version.

    Attributes:
        name: name of the measure and of its figure.
        unit: unit of the figure.
        better: "higher" or "lower".
        run: subject -> the value, one or several `Figure`s, or None if the subject can't be measured.
        real_only: whether the figure is simulated while masks or fake-quant are pending.
        headline: whether tables of versions show the figure too.
        source: the plugin that offers it, for messages; kdkit sets it, and gives the measure copies. Empty for kdkit's own.

    >>> layers = Measure("layers", "", "lower", lambda subject: len(list(subject.model.modules())))
    """

    name: str
    unit: str
    better: str
    run: Callable[[Subject], float | Figure | Iterable[Figure] | None]
    real_only: bool = False
    headline: bool = True
    source: str = ""

    @property
    def title(self) -> str:
        """Its name in messages."""
        return f"{self.name} (of {self.source})" if self.source else self.name

    @property
    def home(self) -> str:
        """The package of its code; empty for kdkit's own."""
        return package_of(getattr(self.run, "__module__", None) or type(self.run).__module__) if self.source else ""

    def figures(self, subject: Subject) -> list[Figure]:
        """The figures of a subject.

        Raises:
            TypeError: `run` returned something else.
            ValueError: a figure is not a finite number.
        """
        found = self.run(subject)
        listed = [] if found is None else list(found) if isinstance(found, Iterable) and not isinstance(found, str | Tensor) else [found]
        return [self._complete(item, subject) for item in listed]

    def _complete(self, item: Any, subject: Subject) -> Figure:
        figure = item if isinstance(item, Figure) else Figure(self.name, item, self.unit, self.better)
        if isinstance(figure.value, bool) or not isinstance(figure.value, (int, float)):
            raise TypeError(f"{type(figure.value).__name__} is not a number; a measure returns a number, a Figure, several Figures, or None")
        if not math.isfinite(figure.value):
            raise ValueError(f"{figure.name} is {figure.value}")
        simulated = figure.simulated or (self.real_only and bool(subject.traits & SIMULATED))
        return replace(figure, backend=figure.backend or subject.backend.name, simulated=simulated, headline=figure.headline and self.headline)


Call = Callable[[Measure, Callable[[], list[Figure]]], list[Figure]]
"""Calls a plugin's measure: (measure, computes its figures) -> the figures."""


def measure(subject: Subject, measures: Iterable[Measure], call: Call = lambda measure, figures: figures()) -> Report:
    """Measure a version.

    Args:
        subject: the version.
        measures: the measures to run, in order.
        call: calls the measures of plugins.

    >>> from types import SimpleNamespace
    >>> import torch
    >>> net = nn.Linear(3, 4)
    >>> subject = Subject(net, task=None, data=None, example=Batch((torch.ones(2, 3),)), backend=SimpleNamespace(name="cpu"))
    >>> measure(subject, [Measure("layers", "", "lower", lambda subject: len(list(subject.model.modules())))])
    figure  value
    layers      1
    """
    measures = list(measures)
    subject = replace(subject, notes=[], measured=frozenset(each.name for each in measures))
    figures: dict[str, Figure] = {}
    titles: dict[str, str] = {}
    for each in measures:
        subject.check_cancelled()
        with subject._skip_on_error(f"{each.title} was not measured", each.home):
            for figure in _figures(each, subject, call):
                if figure.name in figures:
                    raise KdError(f"another measure already returned a figure {figure.name!r}: {titles[figure.name]}")
                figures[figure.name], titles[figure.name] = figure, each.title
    timings = [timing for name in ("one_item", "many_items") if (timing := vars(subject).get(name))]
    load = "" if subject.on_cuda else next((timing.disturbance for timing in timings if not timing.is_steady), "")
    return Report(tuple(figures.values()), tuple(dict.fromkeys(subject.notes)), load)


def _figures(measure: Measure, subject: Subject, call: Call) -> list[Figure]:
    """The figures of a measure; one of a plugin receives copies, and is named if it gives none."""
    if not measure.source:
        return measure.figures(subject)
    found = call(measure, lambda: measure.figures(PrivateSubject.of(subject)))
    if not found:
        subject.notes.append(f"{measure.title} gave no figure for this model")
    return found
