"""Tensor names while onnxruntime's quantizer works: it derives names from each tensor's, such as x_scale and x_quantized from x, and takes
a tensor that has such a name already for its own. So no name of the user's is in the graph meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kdkit.backends.onnx import every_name, rename_tensors

if TYPE_CHECKING:
    from onnx import ModelProto


def neutralize_names(model: ModelProto) -> dict[str, str]:
    """Rename all tensors of a graph to t0, t1, ..., of which no name that is derived from one is another one.

    Args:
        model: changed in place.

    Returns:
        Old -> new names.
    """
    names = {name: f"t{number}" for number, name in enumerate(sorted(every_name(model.graph) - {""}))}
    rename_tensors(model, names)
    return names


def restore_names(model: ModelProto, names: Mapping[str, str]) -> ModelProto:
    """Give the inputs and outputs of a graph the names that they had before `neutralize_names`, which returned `names`.

    Args:
        model: changed in place, and returned.
    """
    old = {new: name for name, new in names.items()}
    rename_tensors(model, {item.name: old[item.name] for item in (*model.graph.input, *model.graph.output) if item.name in old})
    return model
