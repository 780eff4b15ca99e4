"""The layers of a graph whose weights can be held in 8 bits, and the choice among them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from kdkit.backends.onnx import module_of, numel
from kdkit.models import select_layers

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

_WEIGHTS = {"Conv": (1,), "ConvTranspose": (1,), "MatMul": (1,), "Gemm": (1,), "Gather": (0,), "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2)}
"""Positions of weights among an operator's inputs."""


@dataclass(frozen=True)
class Layer:
    """One operator with weights.

    Attributes:
        node: the node's name.
        operator: of ONNX, such as "Conv".
        module: the torch module it came from, or the node's name where that is not known.
        weights: names of its weights.
        elements: of them.
    """

    node: str
    operator: str
    module: str
    weights: tuple[str, ...]
    elements: int


def layers_of(model: ModelProto) -> list[Layer]:
    """The layers of a graph, in order: convolutions, products with a constant, embeddings, recurrent layers."""
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    found = (_layer(node, held) for node in model.graph.node)
    return [layer for layer in found if layer is not None]


def _layer(node: NodeProto, held: dict[str, TensorProto]) -> Layer | None:
    from onnx import TensorProto

    names = tuple(node.input[place] for place in _WEIGHTS.get(node.op_type, ()))
    if not names or any(name not in held or held[name].data_type != TensorProto.FLOAT or len(held[name].dims) < 2 for name in names):
        return None
    return Layer(node.name, node.op_type, module_of(node) or node.name, names, sum(numel(held[name]) for name in names))


def multiplies_activations(model: ModelProto) -> bool:
    """Whether the graph holds attention: a softmax, and products of two activations."""
    held = {tensor.name for tensor in model.graph.initializer}
    products = any(node.op_type == "MatMul" and not held & set(node.input) for node in model.graph.node)
    return products and any(node.op_type == "Softmax" for node in model.graph.node)


def chosen(layers: Iterable[Layer], wanted: tuple[str, ...], skipped: tuple[str, ...]) -> list[Layer]:
    """The layers that the patterns `wanted` mean (all when there are none) without those that `skipped` mean.

    Raises:
        KdError: a pattern means no layer.
    """
    layers = list(layers)
    tree = _name_tree(layer.module for layer in layers)
    among = set(select_layers(tree, wanted)) if wanted else {layer.module for layer in layers}
    among -= set(select_layers(tree, skipped))
    return [layer for layer in layers if layer.module in among]


def _name_tree(names: Iterable[str]) -> nn.Module:
    """Empty modules nested by the dots of the names, so that `select_layers` works on the layers of an ONNX graph."""
    root = nn.Module()
    for name in names:
        node = root
        for part in name.split("."):
            if part not in node._modules:
                node.add_module(part, nn.Module())
            node = node._modules[part]  # type: ignore[assignment]
    return root
