"""Weights: histograms of the weights of two versions, over common bins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy
import torch
from torch import Tensor, nn

from kdkit.display.charts import histogram
from kdkit.display.table import Cell, Table, number
from kdkit.errors import KdError
from kdkit.guards import explain_error
from kdkit.measurement.size import packed_tensors
from kdkit.models.layer_selection import select_layers
from kdkit.models.traits import Trait, traits_of

RANGES = 60
"""Bins of a histogram."""
COUNTED = 20_000_000
"""Number of weights up to which distinct values are counted; sorting more takes too long."""


@dataclass(frozen=True)
class Spread:
    """The distribution of the weights of one version.

    Attributes:
        version: its name.
        count: number of finite weights; nan and infinity are left out.
        zeros: share of exact zeros.
        distinct: number of distinct values; None if there are too many weights to count.
        channel_distinct: the largest number of distinct values in one output channel; a channel of N bits has at most 2^N.
        low, high, mean, deviation: of all weights.
        shares: share of the weights in each bin.
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
class WeightHistogram:
    """The weights of a layer, or of all layers, in two versions.

    Attributes:
        layer: name or pattern; "" for all layers.
        edges: edges of the bins, common to all versions.
        spreads: one for each version that has such weights.
        notes: weights that were left out, and why.

    >>> WeightHistogram.of("", {"@base": {"0.weight": torch.tensor([[1.0, -1.0]])}, "@slim": {"0.weight": torch.tensor([[1.0, 0.0]])}})
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
    def of(cls, layer: str, found: Mapping[str, Mapping[str, Tensor]], notes: Sequence[str] = ()) -> WeightHistogram:
        """From weights of shape (out, ...), by the name of the version and the name of the weight.

        Raises:
            KdError: there are no weights.
        """
        values = {version: _joined(weights) for version, weights in found.items()}
        values = {version: joined for version, joined in values.items() if len(joined)}
        if not values:
            raise KdError(f"weights: there are no weights to show{f' in {layer}' if layer else ''}", *notes, "%kd layers shows what a version is made of")
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
        """A row for each version."""
        rows = [
            [each.version, each.count, Cell(f"{each.zeros:.3g}"), each.distinct, each.channel_distinct, each.low, each.high, each.mean, each.deviation]
            for each in self.spreads
        ]
        return Table(["version", "weights", "zeros", "distinct", "a channel", "min", "max", "mean", "deviation"], rows)

    @property
    def chart(self) -> str:
        """The histograms as outlines, as SVG."""
        return histogram(self.edges, {each.version: each.shares for each in self.spreads}, f"Weights of {self.layer or 'all layers'}", "weight; up: share of the weights")

    def __repr__(self) -> str:
        return "\n".join([self.summary, repr(self.table), *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return f"<p>{escape(self.summary)}</p><div>{self.chart}</div>{self.table._repr_html_()}" + (f"<ul>{notes}</ul>" if notes else "")


def compare_weights(versions: Sequence[tuple[str, nn.Module]], layer: str = "") -> WeightHistogram:
    """The weights of versions, without biases and norms; packed weights are dequantized.

    Args:
        versions: names and models.
        layer: name or pattern, see `kdkit.models.layer_selection.match`; default: all layers.

    Raises:
        KdError: no version has such a layer, or none has weights that can be read.
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
    return WeightHistogram.of(layer, found, notes)


def _weights_of(model: nn.Module, version: str, layer: str, notes: list[str]) -> dict[str, Tensor]:
    if Trait.ONNX in traits_of(model):
        raise KdError(f"{version} is an onnxruntime graph, whose weights are not read", "choose the version that it was made from", "%kd layers lists what it holds")
    wanted = set(select_layers(model, [layer])) if layer else None
    everything = [*model.named_parameters(), *packed_tensors(model)]
    held = [(name, tensor) for name, tensor in everything if tensor.ndim >= 2 and (wanted is None or name.rpartition(".")[0] in wanted)]
    # pruning by masks keeps the full weight as `weight_orig` until the masks are folded in
    masks = dict(model.named_buffers())
    found = {}
    for name, tensor in held:
        try:
            mask = masks.get(f"{name.removesuffix('_orig')}_mask")
            found[name] = _plain(tensor.detach()) if mask is None else _plain(tensor.detach() * mask)
        except (KdError, RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
            notes.append(f"{version}: {name} is packed as {type(tensor.data).__name__} and can't be read: {explain_error(error)}")
    return found


def _plain(tensor: Tensor) -> Tensor:
    """As a float tensor on the CPU.

    Raises:
        KdError: it holds codes whose values are unknown.
    """
    if tensor.is_quantized or (type(tensor.data) is not Tensor and hasattr(tensor, "dequantize")):
        tensor = tensor.dequantize()
    if not tensor.is_floating_point():
        raise KdError(f"its elements are codes of {str(tensor.dtype)[6:]}")
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
    """The largest number of distinct values in one row; a row is an output channel, except in transposed layers."""
    rows = tensor.flatten(1).sort(1).values
    return int((rows.diff(dim=1) != 0).sum(1).max()) + 1 if rows.numel() else 0
