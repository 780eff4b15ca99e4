"""Outlier columns: the few features of a transformer's activations that are many times larger than all others stay in float.

One scale for all features would spend its levels on them (Dettmers et al., "LLM.int8()", NeurIPS 2022, arXiv:2208.07339). A product is split,

    x · W = quantized(x) · W₀ + x[:, outliers] · W[outliers],

where W₀ has zeros in the rows of the outliers: what the quantized x holds of them is clipped, and counts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdkit.backends.onnx import every_name
from kdkit_quantize.arithmetic import Range
from kdkit_quantize.layers import Layer

if TYPE_CHECKING:
    from onnx import ModelProto

RATIO = 6.0
"""How many times larger than the median column an outlier is."""

Columns = Mapping[str, NDArray[np.int64]]
"""Tensor -> its outlier columns, along the last axis."""


class LargestByColumn(Range):
    """The largest magnitude of each column, along the last axis.

    >>> seen = LargestByColumn(); seen.update(np.array([[1.0, -9.0], [2.0, 3.0]])); seen.largest
    array([2., 9.])
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest: NDArray[np.floating] = np.zeros(1)

    def update(self, values: np.ndarray) -> None:
        """See some more values."""
        super().update(values)
        self.largest = np.maximum(self.largest, np.abs(values.reshape(-1, values.shape[-1])).max(0))


def find_outliers(largest: NDArray[np.floating], most: int) -> NDArray[np.int64]:
    """The columns that are more than `RATIO` times the median one, largest first, `most` at most; in order of their place.

    >>> find_outliers(np.array([1.0, 30.0, 1.2, 0.9, 8.0]), most=16), find_outliers(np.array([1.0, 30.0, 1.2, 0.9, 8.0]), most=1)
    (array([1, 4]), array([1]))
    """
    above = np.flatnonzero(largest > RATIO * np.median(largest))
    return np.sort(above[np.argsort(-largest[above], kind="stable")][:most])


def isolate(model: ModelProto, layers: Iterable[Layer]) -> dict[str, str]:
    """Give products a copy of an activation that other nodes read too, in place: the skip connections around them stay in float.

    Returns:
        The name of each copy -> the activation.
    """
    from onnx import helper

    wanted = {layer.node for layer in layers if layer.operator in ("MatMul", "Gemm")}
    outputs, taken = {item.name for item in model.graph.output}, every_name(model.graph)
    products = [node for node in model.graph.node if node.name in wanted]
    others = {name for node in model.graph.node if node.name not in wanted for name in node.input} | outputs
    copies: dict[str, str] = {}
    for node in products:
        name = node.input[0]
        if name not in others:
            continue
        copy = f"{name}_copy"
        while copy in taken and copy not in copies:
            copy += "_"
        if copy not in copies:
            copies[copy] = name
            taken.add(copy)
            place = next(index for index, each in enumerate(model.graph.node) if each.name == node.name)
            model.graph.node.insert(place, helper.make_node("Identity", [name], [copy]))
        node.input[0] = copy
    return copies


def separate(model: ModelProto, layers: Iterable[Layer], columns: Columns) -> int:
    """Split the products of activations that have outlier columns, in place.

    Args:
        model: a graph.
        layers: of it; matrix products with a constant are split.
        columns: of the activations.

    Returns:
        How many products were split.
    """
    from onnx import helper, numpy_helper

    held = {tensor.name: tensor for tensor in model.graph.initializer}
    taken, split = every_name(model.graph), 0
    wanted = {layer.node for layer in layers if layer.operator == "MatMul"}

    def fresh(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    for place, node in reversed([*enumerate(model.graph.node)]):
        if node.name not in wanted or node.input[0] not in columns or node.input[1] not in held:
            continue
        which, weight = columns[node.input[0]], numpy_helper.to_array(held[node.input[1]])
        rest = weight.copy()
        rest[which] = 0
        names = {part: fresh(f"{node.output[0]}_{part}") for part in ("rest", "columns", "rows", "outliers", "inside", "outside")}
        model.graph.initializer.extend(
            [
                numpy_helper.from_array(rest, names["rest"]),
                numpy_helper.from_array(which.astype(np.int64), names["columns"]),
                numpy_helper.from_array(np.ascontiguousarray(weight[which]), names["rows"]),
            ]
        )
        added = [
            helper.make_node("Gather", [node.input[0], names["columns"]], [names["outliers"]], axis=-1),
            helper.make_node("MatMul", [names["outliers"], names["rows"]], [names["outside"]], name=f"{node.name}_outliers"),
            helper.make_node("Add", [names["inside"], names["outside"]], [node.output[0]]),
        ]
        node.input[1], node.output[0] = names["rest"], names["inside"]
        for offset, each in enumerate(added, 1):
            model.graph.node.insert(place + offset, each)
        split += 1
    return split
