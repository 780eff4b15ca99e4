"""Calibration: the range of every activation, from batches that stream once.

Histograms update online, so memory does not grow with the data, and how the data is cut into batches changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import numpy as np

from kdkit import Batch, Context, KdError
from kdkit.backends.onnx import OnnxModel, open_session

Method = Literal["minmax", "entropy", "percentile"]

CHUNK = 8
"""Items run at a time: all activations of so many items are in memory at once, and no more."""


class Range:
    """Smallest and largest value seen.

    >>> seen = Range(); seen.update(np.array([-1.0, 3.0])); seen.update(np.array([2.0])); seen.clip("minmax")
    (-1.0, 3.0)
    """

    def __init__(self) -> None:
        self.lowest, self.highest = np.inf, -np.inf

    def update(self, values: np.ndarray) -> None:
        """See some more values.

        Raises:
            ValueError: one is infinite or not a number.
        """
        low, high = float(values.min()), float(values.max())
        if not np.isfinite((low, high)).all():
            raise ValueError("not finite")
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)

    def clip(self, method: Method, percentile: float = 99.99) -> tuple[float, float]:
        """The range to quantize."""
        return self.lowest, self.highest


class Histogram(Range):
    """Counts of values in bins around zero, whose width is a power of two.

    When a value falls outside, the width doubles and pairs of bins merge. Bins of the wider width are exactly pairs of the
    narrower one, so the counts are what one pass over all values would have given: order and batches don't matter.

    Args:
        bins: on either side of zero; even.
    """

    def __init__(self, bins: int = 2048) -> None:
        super().__init__()
        self.bins, self.exponent = bins, -126
        self.counts = np.zeros(2 * bins, dtype=np.int64)

    @property
    def width(self) -> float:
        """Of one bin."""
        return 2.0**self.exponent / self.bins

    def update(self, values: np.ndarray) -> None:
        """See some more values."""
        super().update(values)
        peak = max(abs(self.lowest), abs(self.highest))
        while peak and self.exponent < np.frexp(peak)[1]:
            self._widen()
        places = np.floor(values.ravel().astype(np.float64) / self.width).astype(np.int64) + self.bins
        self.counts += np.bincount(np.clip(places, 0, 2 * self.bins - 1), minlength=2 * self.bins)

    def _widen(self) -> None:
        merged = self.counts.reshape(-1, 2).sum(1)
        self.counts = np.zeros_like(self.counts)
        self.counts[self.bins // 2 : self.bins + self.bins // 2] = merged
        self.exponent += 1

    def clip(self, method: Method, percentile: float = 99.99) -> tuple[float, float]:
        """The range to quantize: without the outermost values (percentile), or losing the least information (entropy)."""
        if method == "minmax":
            return self.lowest, self.highest
        low, high = self._quantiles(percentile) if method == "percentile" else self._least_divergent()
        return max(low, self.lowest), min(high, self.highest)

    def _quantiles(self, percentile: float) -> tuple[float, float]:
        cut = (100 - percentile) / 200 * self.counts.sum()
        upwards = np.cumsum(self.counts)
        left, right = int(np.searchsorted(upwards, cut, side="right")), int(np.searchsorted(upwards, upwards[-1] - cut))
        return (left - self.bins) * self.width, (right + 1 - self.bins) * self.width

    def _least_divergent(self) -> tuple[float, float]:
        magnitudes = self.counts[self.bins :] + self.counts[self.bins - 1 :: -1]
        # zero is exact in any range, and after a ReLU so frequent that it would hide all else
        magnitudes[0] = magnitudes[1]
        levels = 128 if self.lowest < 0 < self.highest else 256
        limit = entropy_threshold(magnitudes, levels) * self.width
        return -limit, limit


def entropy_threshold(magnitudes: np.ndarray, levels: int, step: int | None = None) -> int:
    """How many bins of a histogram of magnitudes to keep, so that `levels` steps over them tell most of the distribution.

    Args:
        magnitudes: (bins,) counts of |x|, from zero upwards.
        levels: quantization steps on one side of zero.
        step: between candidates, in bins; default: an eighth of `levels`.

    The divergence is KL(P ‖ Q): P the kept bins with all that was cut added to the last of them, Q the kept bins in `levels`
    steps, each spread evenly over its non-empty bins (Migacz, "8-bit inference with TensorRT", GTC 2017).

    >>> entropy_threshold(np.array([50, 30, 12, 5, 2, 1, 0, 0]), levels=4, step=1)
    4
    """
    used = int(np.flatnonzero(magnitudes).max(initial=0)) + 1
    if used <= levels:
        return used
    candidates = sorted({*range(levels, used, step or max(1, levels // 8)), used})
    return min(candidates, key=lambda kept: divergence(magnitudes, kept, levels))


def divergence(magnitudes: np.ndarray, kept: int, levels: int) -> float:
    """KL(P ‖ Q) of keeping the first `kept` bins; see `entropy_threshold`."""
    inside = magnitudes[:kept].astype(np.float64)
    reference = inside.copy()
    reference[-1] += magnitudes[kept:].sum()
    steps = np.arange(kept) * levels // kept
    filled = (reference > 0).astype(np.float64)
    evenly = np.bincount(steps, inside, levels) / np.maximum(np.bincount(steps, filled, levels), 1)
    coarse = evenly[steps] * filled
    p, q = reference / reference.sum(), np.maximum(coarse / coarse.sum(), 1e-12) if coarse.sum() else np.full(kept, 1e-12)
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / q[seen])).sum())


def calibrate(
    model: OnnxModel, tensors: Iterable[str], batches: Iterable[Batch], context: Context, method: Method, percentile: float, total: int = 0
) -> dict[str, tuple[float, float]]:
    """The range of each of `tensors`, activations within the graph, over all batches.

    Raises:
        KdError: no batches, or an activation that is infinite or not a number.
    """
    names = list(dict.fromkeys(tensors))
    seen: Mapping[str, Range] = {name: Range() if method == "minmax" else Histogram() for name in names}
    session = open_session(_watched(model, names), optimize=False)
    done = 0
    for batch in batches:
        for chunk in _chunks(batch):
            _observe(seen, names, session.run(names, model.feeds(chunk)))
            context.check_cancelled()
        done += 1
        context.progress(done, max(total, done), "calibrating")
    if not done:
        raise KdError(f"{context.stage or 'calibration'} got no batches", "%kd set --calibration {batches}; labels are not needed")
    return {name: item.clip(method, percentile) for name, item in seen.items()}


def _observe(seen: Mapping[str, Range], names: list[str], values: list[np.ndarray]) -> None:
    for name, value in zip(names, values, strict=True):
        try:
            if value.size:
                seen[name].update(value)
        except ValueError as error:
            raise KdError(f"activation {name} holds infinities or NaN on the calibration data", "check the calibration batches, and the model in float, first") from error


def _watched(model: OnnxModel, names: list[str]) -> bytes:
    """The graph with those tensors among its outputs."""
    import onnx

    graph = model.graph()
    already = {item.name for item in graph.graph.output}
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in already)
    return graph.SerializeToString()


def _chunks(batch: Batch) -> Iterator[Batch]:
    bare = Batch(batch.args, batch.kwargs)
    for start in range(0, bare.size, CHUNK):
        yield bare[start : start + CHUNK]
