"""Weights: how those of two versions lie, before and after, over common ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy
import torch
from torch import Tensor, nn

from kdkit.charts import histogram
from kdkit.contract import Trait
from kdkit.counting import packed_tensors
from kdkit.errors import KdError
from kdkit.models import traits_of
from kdkit.patterns import match
from kdkit.table import Cell, Table, number

RANGES = 60
"""Of a histogram."""
COUNTED = 20_000_000
"""Weights up to which distinct values are counted; beyond, sorting them takes too long."""


@dataclass(frozen=True)
class Spread:
    """How the weights of one version lie.

    Attributes:
        version: how it is called.
        count: weights that were looked at; numbers that are none, such as nan, are left out.
        zeros: share of exact zeros.
        distinct: how many different values there are; None where they are too many to count.
        channel_distinct: the most different values in one output channel; a channel of N bits has 2^N at most.
        low, high, mean, deviation: of all.
        shares: of the weights in each range.
    """

    version: str
    count: int
    zeros: float
    distinct: int | None
    channel_distinct: int | None
    low: float
    high: float
    mean: float
    deviation: float
    shares: tuple[float, ...]


@dataclass(frozen=True, repr=False)
class Weights:
    """The weights of a layer, or of all layers, in two versions.

    Attributes:
        layer: name or pattern; "" for all.
        edges: of the ranges, common to all spreads.
        spreads: one a version that has such weights.
        notes: what is not among them, and why.

    >>> Weights.of("", {"@base": {"0.weight": torch.tensor([[1.0, -1.0]])}, "@slim": {"0.weight": torch.tensor([[1.0, 0.0]])}})
    weights of all layers, from -1 to 1
    version  weights  zeros  distinct  a channel  min  max  mean  deviation
    @base          2      0         2          2   -1    1     0          1
    @slim          2    0.5         2          2    0    1   0.5        0.5
    """

    layer: str
    edges: tuple[float, ...]
    spreads: tuple[Spread, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, layer: str, found: Mapping[str, Mapping[str, Tensor]], notes: Sequence[str] = ()) -> Weights:
        """From weights, (out, ...) each, by the names of versions and then by their own.

        Raises:
            KdError: there are none at all.
        """
        values = {version: _joined(weights) for version, weights in found.items()}
        values = {version: joined for version, joined in values.items() if len(joined)}
        if not values:
            raise KdError(f"weights: there are no weights to look at{f' in {layer}' if layer else ''}", *notes, "%kd layers shows what a version is made of")
        low, high = min(float(joined.min()) for joined in values.values()), max(float(joined.max()) for joined in values.values())
        edges = numpy.histogram_bin_edges([low, high], RANGES)
        spreads = [_spread(version, joined, list(found[version].values()), edges) for version, joined in values.items()]
        return cls(layer, tuple(map(float, edges)), tuple(spreads), tuple(notes))

    @property
    def summary(self) -> str:
        """One line."""
        return f"weights of {self.layer or 'all layers'}, from {number(self.edges[0])} to {number(self.edges[-1])}"

    @property
    def table(self) -> Table:
        """A version a row."""
        rows = [
            [each.version, each.count, Cell(f"{each.zeros:.3g}"), each.distinct, each.channel_distinct, each.low, each.high, each.mean, each.deviation]
            for each in self.spreads
        ]
        return Table(["version", "weights", "zeros", "distinct", "a channel", "min", "max", "mean", "deviation"], rows)

    @property
    def chart(self) -> str:
        """Both spreads as outlines, as SVG."""
        return histogram(self.edges, {each.version: each.shares for each in self.spreads}, f"Weights of {self.layer or 'all layers'}", "weight; up: share of the weights")

    def __repr__(self) -> str:
        return "\n".join([self.summary, repr(self.table), *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return f"<p>{escape(self.summary)}</p><div>{self.chart}</div>{self.table._repr_html_()}" + (f"<ul>{notes}</ul>" if notes else "")


def weights(versions: Sequence[tuple[str, nn.Module]], layer: str = "") -> Weights:
    """The weights of some versions, biases and norms aside; packed ones as the numbers they stand for.

    Args:
        versions: names and models.
        layer: name or pattern, see `kdkit.patterns.match`; all layers when not said.

    Raises:
        KdError: no version has such a layer, or none has weights that can be looked at.
    """
    found: dict[str, dict[str, Tensor]] = {}
    notes: list[str] = []
    missing: KdError | None = None
    for version, model in versions:
        try:
            found[version] = _weights_of(model, version, layer, notes)
        except KdError as error:
            notes.append(error.inside(version).message)
            missing = missing or error
    if missing is not None and not found:
        raise missing
    return Weights.of(layer, found, notes)


def _weights_of(model: nn.Module, version: str, layer: str, notes: list[str]) -> dict[str, Tensor]:
    if Trait.ONNX in traits_of(model):
        raise KdError(f"{version} is a graph of onnxruntime, whose weights are not taken apart", "name the version it was made of", "%kd layers lists what it holds")
    wanted = set(match(model, [layer])) if layer else None
    everything = [*model.named_parameters(), *packed_tensors(model)]
    held = [(name, tensor) for name, tensor in everything if tensor.ndim >= 2 and (wanted is None or name.rpartition(".")[0] in wanted)]
    # what prunes by masks keeps the whole weight as `weight_orig` until they are folded in
    masks = dict(model.named_buffers())
    found = {}
    for name, tensor in held:
        try:
            mask = masks.get(f"{name.removesuffix('_orig')}_mask")
            found[name] = _plain(tensor.detach()) if mask is None else _plain(tensor.detach() * mask)
        except (RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
            notes.append(f"{version}: {name} is packed as {type(tensor.data).__name__} and can't be read: {str(error).splitlines()[0]}")
    return found


def _plain(tensor: Tensor) -> Tensor:
    """As float numbers on the CPU.

    Raises:
        TypeError: it holds codes, and nothing tells what they stand for.
    """
    if tensor.is_quantized or (type(tensor.data) is not Tensor and hasattr(tensor, "dequantize")):
        tensor = tensor.dequantize()
    if not tensor.is_floating_point():
        raise TypeError(f"its elements are codes of {str(tensor.dtype)[6:]}")
    return tensor.float().cpu()


def _joined(found: Mapping[str, Tensor]) -> Tensor:
    every = [tensor.flatten() for tensor in found.values()]
    joined = torch.cat(every) if every else torch.zeros(0)
    return joined[joined.isfinite()]


def _spread(version: str, values: Tensor, tensors: Sequence[Tensor], edges: numpy.ndarray) -> Spread:
    counts, _ = numpy.histogram(values.numpy(), len(edges) - 1, (edges[0], edges[-1]))
    few = len(values) <= COUNTED
    wide = values.double()
    return Spread(
        version,
        len(values),
        float((values == 0).double().mean()),
        len(values.unique()) if few else None,
        max(map(_most_distinct, tensors)) if few else None,
        float(values.min()),
        float(values.max()),
        float(wide.mean()),
        float(wide.std(correction=0)),
        tuple(map(float, counts / len(values))),
    )


def _most_distinct(tensor: Tensor) -> int:
    """The most different values in one row; a row is an output channel of all layers but transposed ones."""
    rows = tensor.flatten(1).sort(1).values
    return int((rows.diff(dim=1) != 0).sum(1).max()) + 1 if rows.numel() else 0
