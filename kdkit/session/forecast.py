"""Forecasts: the parameters, bytes and MACs after each step of a pipeline, predicted before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

from torch import nn

from kdkit.data import Batch
from kdkit.display.table import Cell, Table, number
from kdkit.errors import KdError
from kdkit.guards.error_location import describe_error
from kdkit.guards.random_state import seeded
from kdkit.measurement.macs import count_macs
from kdkit.measurement.size import count_parameters, size_bytes
from kdkit.models.copies import private_copy
from kdkit.pipelines.order import Planned
from kdkit.session.execution import call_stage
from kdkit.stages.context import Context
from kdkit.stages.stage import Forecast, Stage


@dataclass(frozen=True)
class StepForecast:
    """Figures after one step; None if kdkit can't predict them."""

    line: str
    parameters: int | None
    size_bytes: int | None
    macs: int | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The predicted figures of a pipeline, step by step."""

    steps: tuple[StepForecast, ...]

    @property
    def table(self) -> Table:
        """One row per step; the first row is the model before the pipeline."""
        rows = [[step.line, Cell(number(step.parameters)), Cell(number(step.size_bytes, "B")), Cell(number(step.macs))] for step in self.steps]
        return Table(["step", "parameters", "size", "macs"], rows, "predicted; nothing was run")

    def __repr__(self) -> str:
        return "\n".join([repr(self.table), *(f"  {note}" for step in self.steps for note in step.notes)])

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


@dataclass(frozen=True)
class _Step:
    """A predicted step."""

    line: str
    forecast: Forecast
    figures: StepForecast


@dataclass(frozen=True)
class _Latest:
    """The latest prediction from a model: what else determined it, the figures of the model, and the steps."""

    given: ReferenceType[Any]
    start: StepForecast
    steps: list[_Step]


KEPT_BYTES = 2**28
"""Weights of predicted models that are kept at most, so that a change of a late step does not predict the earlier ones again."""

_latest: WeakKeyDictionary[nn.Module, _Latest] = WeakKeyDictionary()


def predict_plan(steps: list[Planned], model: nn.Module, name: str, context_of: Callable[[Stage], Context], example: Batch | None, given: Any = None) -> Plan:
    """Predict the figures after each step, on temporary copies of the model.

    Args:
        given: what besides the lines determines a prediction, such as the session's objects. Steps that the latest prediction from the
            same model and with the same one began with are not predicted again. None: nothing is kept.

    Raises:
        KdError: a step does not fit the structure of the model.
    """
    before = _latest.get(model)
    known = before if before is not None and given is not None and before.given() is given else None
    start = known.start if known else _count(name, Forecast(model), example, ())
    earlier, made = list(known.steps) if known else [], list[_Step]()
    for step in steps:
        line = step.stage.line() + (" (inserted)" if step.inserted else "")
        if len(earlier) > len(made) and earlier[len(made)].line == line:
            made.append(earlier[len(made)])
            continue
        earlier, context = [], context_of(step.stage)
        with seeded(0):
            forecast = _forecast(step.stage, private_copy(made[-1].forecast.model if made else model), context)
        made.append(_Step(line, forecast, _count(line, forecast, example, tuple(context.notes))))
    if given is not None and sum(size_bytes(step.forecast.model) for step in made) <= KEPT_BYTES:
        _latest[model] = _Latest(ref(given), start, made)
    return Plan((replace(start, line=name), *(step.figures for step in made)))


def _forecast(stage: Stage, model: nn.Module, context: Context) -> Forecast:
    try:
        predicted = call_stage(stage, lambda: stage.forecast(model, context))
    except KdError:
        raise
    except (Exception, SystemExit) as error:
        raise KdError(f"{context.stage}: its forecast failed: {describe_error(error, type(stage).__module__)}", "run it without --dry-run") from error
    if not isinstance(predicted, Forecast):
        raise KdError(f"{context.stage}: its forecast returned {type(predicted).__name__}, not a Forecast", "run it without --dry-run")
    return predicted


def _count(line: str, forecast: Forecast, example: Batch | None, notes: tuple[str, ...]) -> StepForecast:
    macs = None if example is None else count_macs(forecast.model, example[:1])
    if macs is not None and forecast.macs_ratio is not None:
        macs = round(macs * forecast.macs_ratio)
    bytes_on_disk = size_bytes(forecast.model) if forecast.size_bytes is None else forecast.size_bytes
    return StepForecast(line, count_parameters(forecast.model), bytes_on_disk, macs, notes)
