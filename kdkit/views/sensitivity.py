"""Sensitivity: how much quality each single layer costs when its weights are rounded or zeroed, as compression does."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from kdkit.data import Batch, BatchList, Data
from kdkit.display.charts import row_chart
from kdkit.display.table import Cell, Table, number
from kdkit.errors import KdError
from kdkit.guards.cleanup import always_run
from kdkit.measurement.predictions import PredictionStore
from kdkit.models.copies import private_copy
from kdkit.models.layer_selection import select_layers
from kdkit.models.traits import Trait, traits_of
from kdkit.tasks import Call, Task

if TYPE_CHECKING:
    from kdkit.backends.base import Backend
    from kdkit.stages.context import Context

SHOWN = 40
"""Layers in the text, the costliest first; the chart has half as many more."""

Disturb = Callable[..., Tensor]
"""(weight, axis of its output channels) -> the disturbed weight."""


def rounded(weight: Tensor, axis: int = 0, *, bits: int) -> Tensor:
    """A weight rounded to multiples of one scale per output channel, symmetric: from -(2^(bits-1) - 1) to 2^(bits-1) - 1.

    >>> rounded(torch.tensor([[1.0, 0.4, -0.6]]), bits=2)
    tensor([[ 1.,  0., -1.]])
    """
    top = 2 ** (bits - 1) - 1
    others = [dimension for dimension in range(weight.ndim) if dimension != axis]
    step = weight.abs().amax(others, keepdim=True) / top
    return torch.where(step > 0, (weight / step).round() * step, weight)


def thinned(weight: Tensor, axis: int = 0, *, ratio: float) -> Tensor:
    """A weight with the given share of its smallest values set to zero.

    >>> thinned(torch.tensor([[1.0, 0.4, -0.6, 0.1]]), ratio=0.5)
    tensor([[ 1.0000,  0.0000, -0.6000,  0.0000]])
    """
    smallest = weight.abs().flatten().argsort(stable=True)[: int(ratio * weight.numel())]
    return weight.flatten().index_fill(0, smallest, 0.0).view_as(weight)


@dataclass(frozen=True)
class Effect:
    """The effect of disturbing one layer.

    Attributes:
        name, kind: its name and its class.
        parameters: number of disturbed weights.
        value: the task's metric; None without labels.
        change: of the metric, relative to the undisturbed model.
        cost: the change, above 0 if it is for the worse.
        agreement: with the undisturbed model; 1 if all predictions are the same.
    """

    name: str
    kind: str
    parameters: int
    value: float | None
    change: float | None
    cost: float | None
    agreement: float


@dataclass(frozen=True, repr=False)
class LayerSensitivity:
    """The layers of a version, the costliest first.

    Attributes:
        version: its name.
        how: what was done to each layer.
        metric: name of the task's metric.
        undisturbed: the metric of the undisturbed model; None without labels.
        items: number of items of data.
        effects: one for each layer.
        notes: layers that were left out, and why.

    >>> effects = [Effect("0", "Linear", 12, 0.9, -0.05, 0.05, 0.9), Effect("2", "Linear", 8, 0.95, 0.0, 0.0, 1.0)]
    >>> LayerSensitivity("@base", "4 bits", "accuracy", 0.95, 100, tuple(effects))
    @base with one layer at a time in 4 bits: accuracy 0.95 undisturbed, 100 items
    layer  class   weights  accuracy  change  agreement
    0      Linear       12       0.9   -0.05        0.9
    2      Linear        8      0.95      +0          1
    """

    version: str
    how: str
    metric: str
    undisturbed: float | None
    items: int
    effects: tuple[Effect, ...]
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """One line."""
        metric = f"{self.metric} {number(self.undisturbed)} undisturbed, " if self.undisturbed is not None else ""
        return f"{self.version} with one layer at a time in {self.how}: {metric}{number(self.items)} items"

    @property
    def table(self) -> Table:
        """A row for each layer."""
        return self._table(self.effects)

    def _table(self, effects: Sequence[Effect]) -> Table:
        labelled = self.undisturbed is not None
        rows = [
            [each.name, each.kind, each.parameters, *([each.value, Cell(f"{each.change:+.3g}")] if labelled else []), Cell(f"{each.agreement:.4g}")] for each in effects
        ]
        return Table(["layer", "class", "weights", *([self.metric, "change"] if labelled else []), "agreement"], rows)

    @property
    def charts(self) -> list[str]:
        """Bar charts as SVG: the cost of each layer in the metric and in agreement."""
        shown, more = self.effects[: SHOWN * 3 // 2], len(self.effects) - SHOWN * 3 // 2
        which = f", the {len(shown)} costliest layers" if more > 0 else ""
        charts = [row_chart({each.name: [each.cost] for each in shown}, f"{self.metric} lost{which}")] if self.undisturbed is not None else []
        return [*charts, row_chart({each.name: [1 - each.agreement] for each in shown}, f"Disagreement with the undisturbed model{which}")]

    def __repr__(self) -> str:
        left = len(self.effects) - SHOWN
        more = [f"... and {left} that cost less"] if left > 0 else []
        return "\n".join([self.summary, repr(self._table(self.effects[:SHOWN])), *more, *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        charts = "".join(f'<div style="margin: 0.4em 0">{chart}</div>' for chart in self.charts)
        return f"<p>{escape(self.summary)}</p>{charts}{self.table._repr_html_()}" + (f"<ul>{notes}</ul>" if notes else "")


def measure_sensitivity(
    model: nn.Module, version: str, data: Data, context: Context, backend: Backend, *, bits: int = 4, ratio: float | None = None, layers: Iterable[str] = ()
) -> LayerSensitivity:
    """Disturb one layer after another in a copy of a model, and measure the effect on its predictions.

    Args:
        data: to call the model on; all of it is kept in memory.
        context: its task evaluates, and it receives progress.
        backend: where the copy runs.
        bits: to round each layer's weights to.
        ratio: share of each layer's smallest weights to zero, instead of rounding.
        layers: name patterns of layers; default: all layers with weights.

    Raises:
        KdError: the weights are not floats, or no layer has weights.
        Cancelled: the user cancelled.
    """
    how, disturb = _disturbance(bits, ratio)
    if traits_of(model) & {Trait.ONNX, Trait.PACKED_WEIGHTS}:
        raise KdError(f"sensitivity disturbs float weights, and {version} has none", "name the version it was quantized from: %kd sensitivity @base")
    copy, held = private_copy(model), BatchList(data.batches(), data.reason)
    chosen, notes = _layers(copy, tuple(layers))
    done, total = 0, (len(chosen) + 1) * sum(1 for _ in held.batches())

    def observed(name: str, call: Call, batch: Batch) -> Any:
        nonlocal done
        context.progress(done, total, name)
        done += 1
        return call(batch)

    found = []
    with PredictionStore().answering(model, backend.name, lambda: backend.runner(model)) as undisturbed:
        before = _figures(context.task, partial(observed, "undisturbed", undisturbed), held).get(context.task.metric)
        for name, weights in chosen.items():
            module = copy.get_submodule(name)
            with _disturbed(weights, partial(disturb, axis=_channels(module))), backend.runner(copy) as call:
                value, same = _evaluated(context.task, partial(observed, name, call), undisturbed, held)
            change = value - before if value is not None and before is not None else None
            cost = None if change is None else change if context.task.better == "lower" else 0.0 - change
            found.append(Effect(name, type(module).__name__, sum(weight.numel() for weight in weights), value, change, cost, same))
    items = sum(batch.size for batch in held.batches())
    return LayerSensitivity(version, how, context.task.metric, before, items, tuple(sorted(found, key=_harm, reverse=True)), tuple(notes))


def _disturbance(bits: int, ratio: float | None) -> tuple[str, Disturb]:
    if ratio is None:
        if not 2 <= bits <= 16:
            raise KdError(f"--bits {bits} is not from 2 to 16", "a symmetric scale needs a sign and at least one step")
        return f"{bits} bits", partial(rounded, bits=bits)
    if not 0 < ratio <= 1:
        raise KdError(f"--ratio {ratio} is not above 0 and at most 1", "0.5 zeroes the smaller half of each layer's weights")
    return f"which {ratio:.3g} of the weights are zeroed", partial(thinned, ratio=ratio)


def _harm(effect: Effect) -> tuple[float, float]:
    """The sort key of an effect; nan is the worst."""
    cost = 0.0 if effect.cost is None else effect.cost
    return (math.inf if math.isnan(cost) else cost, math.inf if math.isnan(effect.agreement) else -effect.agreement)


def _layers(model: nn.Module, patterns: tuple[str, ...]) -> tuple[dict[str, list[nn.Parameter]], list[str]]:
    """The weights of each layer without biases and norms; a tied weight only once, with a note."""
    modules = select_layers(model, patterns) if patterns else dict(model.named_modules())
    first: dict[nn.Parameter, str] = {}
    chosen: dict[str, list[nn.Parameter]] = {}
    notes = []
    for name, module in modules.items():
        weights = [weight for weight in module.parameters(recurse=False) if weight.ndim >= 2 and weight.is_floating_point()]
        fresh = [weight for weight in weights if weight not in first]
        if weights and not fresh:
            notes.append(f"{name} uses the weights of {first[weights[0]]}")
        if fresh:
            chosen[name] = fresh
            first |= dict.fromkeys(fresh, name)
    if not chosen:
        raise KdError(f"sensitivity: no layer {'that matches ' if patterns else ''}has weights", "%kd layers shows what there is")
    return chosen, notes


def _channels(module: nn.Module) -> int:
    """The axis of the output channels of a layer's weight."""
    return 1 if isinstance(module, _ConvTransposeNd) or type(module).__name__ == "Conv1D" else 0


@contextlib.contextmanager
def _disturbed(weights: Sequence[nn.Parameter], disturb: Callable[[Tensor], Tensor]) -> Iterator[None]:
    held = [weight.data for weight in weights]

    def restore() -> None:
        for weight, data in zip(weights, held, strict=True):
            weight.data = data

    with always_run(restore):
        for weight in weights:
            weight.data = disturb(weight.data)
        yield


def _figures(task: Task, call: Call, data: Data) -> dict[str, float]:
    """The task's metrics, none without labels; the model is called on every batch in any case."""
    if data.labelled or not task.needs_labels:
        return task.evaluate(call, data)
    with torch.no_grad():
        for batch in data.batches():
            call(batch)
    return {}


def _evaluated(task: Task, call: Call, undisturbed: Call, data: Data) -> tuple[float | None, float]:
    """The metric, and the agreement with the undisturbed model, in one pass."""
    same: list[Tensor] = []

    def watched(batch: Batch) -> Any:
        output = call(batch)
        same.append(task.agreeing(output, undisturbed(batch), batch).double().flatten())
        return output

    value = _figures(task, watched, data).get(task.metric)
    return value, float(torch.cat(same).mean())
