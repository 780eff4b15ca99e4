"""Calibration: observers see every activation of a graph, from batches that stream once.

They update online, so memory does not grow with the data, and how the data is cut into batches changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from kdkit import Batch, Context, KdError
from kdkit.backends.onnx import OnnxModel, open_session
from kdkit_quantize.arithmetic import Range

Observer = TypeVar("Observer", bound=Range)

CHUNK = 8
"""Items run at a time: all activations of so many items are in memory at once, and no more."""


def calibrate(
    model: OnnxModel,
    tensors: Iterable[str],
    batches: Iterable[Batch],
    context: Context,
    observer: Callable[[], Observer],
    total: int = 0,
    without: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Observer]:
    """What an observer of each of `tensors`, activations within the graph, has seen after all batches.

    Args:
        tensors: their names.
        observer: makes one for each.
        total: how many batches are expected, for the progress shown.
        without: columns, along the last axis, that the observer of a tensor does not see.

    Raises:
        KdError: no batches, or an activation that is infinite or not a number.
    """
    names = list(dict.fromkeys(tensors))
    seen = {name: observer() for name in names}
    session = open_session(_watched(model, names), optimize=False)
    done = 0
    for batch in batches:
        for chunk in _chunks(batch):
            _observe(seen, names, session.run(names, model.feeds(chunk)), without or {})
            context.check_cancelled()
        done += 1
        context.progress(done, max(total, done), "calibrating")
    if not done:
        raise KdError(f"{context.stage or 'calibration'} got no batches", "%kd set --calibration {batches}; labels are not needed")
    return seen


def _observe(seen: Mapping[str, Range], names: list[str], values: list[np.ndarray], without: Mapping[str, np.ndarray]) -> None:
    for name, value in zip(names, values, strict=True):
        try:
            if value.size:
                seen[name].update(np.delete(value, without[name], -1) if name in without else value)
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
