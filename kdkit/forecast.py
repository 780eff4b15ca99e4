"""Forecasts: what a pipeline would do to parameters, bytes and MACs, told before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from kdkit.context import Context
from kdkit.contract import Forecast, Stage
from kdkit.counting import count_macs, count_parameters, size_bytes
from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models import private_copy
from kdkit.pipeline import Planned
from kdkit.seeding import seeded
from kdkit.table import Cell, Table, number


@dataclass(frozen=True)
class Foreseen:
    """Figures after one step; None where they can't be told."""

    line: str
    parameters: int | None
    size_bytes: int | None
    macs: int | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What would happen, step by step; nothing has run."""

    steps: tuple[Foreseen, ...]

    @property
    def table(self) -> Table:
        """A row a step, the first one being where it begins."""
        rows = [[step.line, Cell(number(step.parameters)), Cell(number(step.size_bytes, "B")), Cell(number(step.macs))] for step in self.steps]
        return Table(["step", "parameters", "size", "macs"], rows, "predicted; nothing was run")

    def __repr__(self) -> str:
        return "\n".join([repr(self.table), *(f"  {note}" for step in self.steps for note in step.notes)])

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


def foresee(steps: list[Planned], model: nn.Module, name: str, context_of: Callable[[Stage], Context], example: Batch | None) -> Plan:
    """Forecast each step on throw-away copies.

    Raises:
        KdError: a step that would fail already at its structure.
    """
    told = [_count(name, Forecast(model), example, ())]
    now = Forecast(model)
    for step in steps:
        context = context_of(step.stage)
        with seeded(0):
            now = _forecast(step.stage, private_copy(now.model), context)
        told.append(_count(step.stage.line() + (" (inserted)" if step.inserted else ""), now, example, tuple(context.notes)))
    return Plan(tuple(told))


def _forecast(stage: Stage, model: nn.Module, context: Context) -> Forecast:
    try:
        return stage.forecast(model, context)
    except KdError:
        raise
    except Exception as error:
        raise KdError(f"{context.stage}: its forecast raised {type(error).__name__}: {error}", "run it without --dry-run") from error


def _count(line: str, now: Forecast, example: Batch | None, notes: tuple[str, ...]) -> Foreseen:
    macs = None if example is None else count_macs(now.model, example[:1])
    if macs is not None and now.macs_ratio is not None:
        macs = round(macs * now.macs_ratio)
    return Foreseen(line, count_parameters(now.model), size_bytes(now.model) if now.size_bytes is None else now.size_bytes, macs, notes)
