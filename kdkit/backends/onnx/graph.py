"""ONNX graphs: count their weights and MACs, and clean them up after an export."""

from __future__ import annotations

import ast
import hashlib
import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

Shapes = Mapping[str, tuple[int, ...]]


def numel(tensor: TensorProto) -> int:
    """The number of elements of an initializer."""
    return math.prod(tensor.dims)


# Weights ---------------------------------------------------------------------------------------------------------

_SCALES = {
    "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "MatMulInteger": (2, 3), "ConvInteger": (2, 3), "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7), "QLinearAdd": (1, 2, 4, 5, 6, 7), "QLinearMul": (1, 2, 4, 5, 6, 7), "QGemm": (1, 2, 4, 5, 7, 8),
    "MatMulIntegerToFloat": (2, 3, 4, 5), "DynamicQuantizeMatMul": (2, 3),
    "DynamicQuantizeLSTM": (8, 9, 10, 11), "QLinearGlobalAveragePool": (1, 2, 3, 4), "QLinearAveragePool": (1, 2, 3, 4),
    "QLinearLeakyRelu": (1, 2, 3, 4), "QLinearSigmoid": (1, 2, 3, 4), "QLinearSoftmax": (1, 2, 3, 4), "MatMulNBits": (2, 3), "GatherBlockQuantized": (2, 3),
}  # fmt: skip
"""Positions of scales and zero points among the inputs of quantized operators."""


def weights_of(model: ModelProto) -> list[TensorProto]:
    """The initializers that are weights: not shapes, indices, or the scales and zero points of quantization."""
    from onnx import TensorProto

    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT32, *_packed_types())
    aside = set(_scale_names(model.graph))
    return [tensor for tensor in model.graph.initializer if tensor.dims and numel(tensor) > 1 and tensor.data_type in kinds and tensor.name not in aside]


def count_weights(model: ModelProto) -> dict[str, int]:
    """The number of weights of each initializer that `weights_of` finds; integers of a few bits in the bytes of one are counted singly."""
    counts = {tensor.name: numel(tensor) for tensor in weights_of(model)}
    for node in model.graph.node:
        facts = {item.name: item.i for item in node.attribute}
        if node.op_type == "MatMulNBits":
            counts[node.input[1]] = facts["K"] * facts["N"]
        elif node.op_type == "GatherBlockQuantized" and node.input[0] in counts:
            counts[node.input[0]] = _numbers_in(model, node.input[0]) * 8 // facts.get("bits", 4)
    return counts


def _numbers_in(model: ModelProto, name: str) -> int:
    return next(numel(tensor) for tensor in model.graph.initializer if tensor.name == name)


PACKED_OPERATORS = ("MatMulNBits", "GatherBlockQuantized")
"""Operators of onnxruntime whose weights are integers of a few bits in bytes."""


def _scale_names(graph: GraphProto) -> Iterator[str]:
    dynamic = {node.output[1] for node in graph.node if node.op_type == "DynamicQuantizeLinear"}
    for node in graph.node:
        if node.op_type == "QLinearConcat":
            yield from (name for index, name in enumerate(node.input) if index < 2 or index % 3 != 2)
        elif node.op_type == "Mul" and dynamic & set(node.input):
            yield from node.input
        else:
            yield from (node.input[index] for index in _SCALES.get(node.op_type, ()) if index < len(node.input))


def packed_of(model: ModelProto) -> list[TensorProto]:
    """The weights stored in 8 or 16 bits."""
    return [tensor for tensor in weights_of(model) if tensor.data_type in _packed_types()]


def _packed_types() -> tuple[int, ...]:
    from onnx import TensorProto

    return TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16


# MACs ------------------------------------------------------------------------------------------------------------


def _convolution(weight: int) -> Callable[[NodeProto, Shapes], int]:
    return lambda node, shapes: math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[weight]][1:])


def _transposed_convolution(node: NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _product(node: NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _gemm(node: NodeProto, shapes: Shapes) -> int:
    turned = any(item.name == "transA" and item.i for item in node.attribute)
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if turned else -1]


def _blocked_product(node: NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.input[0]]) * next(item.i for item in node.attribute if item.name == "N")


def _recurrent(node: NodeProto, shapes: Shapes) -> int:
    steps, items, _ = shapes[node.input[0]]
    return steps * items * (math.prod(shapes[node.input[1]]) + math.prod(shapes[node.input[2]]))


def _attention(node: NodeProto, shapes: Shapes) -> int:
    keys = shapes[node.input[1]][-2]
    return (math.prod(shapes[node.input[0]]) + math.prod(shapes[node.output[0]])) * keys


_MACS: dict[str, Callable[[NodeProto, Shapes], int]] = {
    "Conv": _convolution(1), "ConvInteger": _convolution(1), "QLinearConv": _convolution(3), "ConvTranspose": _transposed_convolution,
    "MatMul": _product, "MatMulInteger": _product, "QLinearMatMul": _product, "DynamicQuantizeMatMul": _product, "MatMulIntegerToFloat": _product,
    "Gemm": _gemm, "QGemm": _gemm, "MatMulNBits": _blocked_product, "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent, "DynamicQuantizeLSTM": _recurrent,
    "Attention": _attention,
}  # fmt: skip


def count_macs(model: ModelProto, run: Callable[[bytes, list[str]], list[np.ndarray]]) -> int:
    """Multiply-accumulates of one call, from the shapes that occur in it.

    Args:
        model: the graph; it is not changed.
        run: (graph, names of outputs) -> their values for the inputs of the call.

    Convolutions, matrix products (including attention), recurrent layers and their 8-bit forms count; element-wise operations do not.
    """
    counted = [node for node in model.graph.node if node.op_type in _MACS]
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    wanted = {name for node in counted for name in (*node.input[:4], node.output[0]) if name} - shapes.keys()
    if wanted:
        shapes |= _shapes(model, sorted(wanted), run)
    return sum(_MACS[node.op_type](node, shapes) for node in counted)


def _shapes(model: ModelProto, names: list[str], run: Callable[[bytes, list[str]], list[np.ndarray]]) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors inside the graph, from Shape operators that are added as outputs; no activation is kept."""
    import onnx

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for index, name in enumerate(names):
        probe.graph.node.append(onnx.helper.make_node("Shape", [name], [f"kdkit_shape_{index}"]))
        probe.graph.output.append(onnx.helper.make_tensor_value_info(f"kdkit_shape_{index}", onnx.TensorProto.INT64, [None]))
    found = run(probe.SerializeToString(), [f"kdkit_shape_{index}" for index in range(len(names))])
    return {name: tuple(int(size) for size in shape) for name, shape in zip(names, found, strict=True)}


# Tidying ---------------------------------------------------------------------------------------------------------


def name_by_module(model: ModelProto, modules: Collection[str], prefix: str) -> None:
    """Name every node "module/Operator" after its torch module, which the exporter's metadata states.

    Args:
        model: a fresh dynamo export; changed in place.
        modules: names of the torch model's modules.
        prefix: the prefix that the exporter added to these names.
    """
    taken: dict[str, int] = {}
    for node in model.graph.node:
        module = next(iter(_origins(node, modules, prefix)), "")
        name = f"{module}/{node.op_type}" if module else node.op_type
        taken[name] = taken.get(name, 0) + 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"


def _origins(node: NodeProto, modules: Collection[str], prefix: str) -> Iterator[str]:
    """Candidates for a node's module, best first: the owner of its weight, since a folded BatchNorm leaves its name on the
    convolution, then the innermost scope."""
    for name in node.input[1:2]:
        owner = name.removeprefix(prefix).removesuffix(".weight")
        if name.endswith(".weight") and owner in modules:
            yield owner
    scopes = next((item.value for item in node.metadata_props if item.key == "pkg.torch.onnx.name_scopes"), "[]")
    for scope in reversed(ast.literal_eval(scopes)):
        name = scope.removeprefix(prefix)
        if name in modules:
            yield name


def rename_tensors(model: ModelProto, wanted: Mapping[str, str]) -> None:
    """Rename tensors everywhere in a graph; another tensor that has a wanted name already gets a new one.

    Args:
        model: changed in place.
        wanted: old -> new names, all different.
    """
    graph = model.graph
    taken = {*every_name(graph), *wanted.values()}
    renamed = dict(wanted)
    for name in [name for name in wanted.values() if name in every_name(graph) and name not in wanted]:
        renamed[name] = next(free for number in itertools.count(1) if (free := f"{name}_{number}") not in taken)
        taken.add(renamed[name])
    for part in _graphs(graph):
        for item in (*part.initializer, *part.input, *part.output, *part.value_info):
            item.name = renamed.get(item.name, item.name)
        for node in part.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]


def every_name(graph: GraphProto) -> set[str]:
    """The names of all tensors, those of inner graphs too."""
    return {name for part in _graphs(graph) for name in (*_tensor_names(part), *(item.name for item in (*part.input, *part.output, *part.value_info)))}


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and the graphs in its nodes, such as the bodies of loops."""
    yield graph
    for node in graph.node:
        for item in node.attribute:
            for inner in ((item.g,) if item.HasField("g") else ()) + tuple(item.graphs):
                yield from _graphs(inner)


def fix_axes(model: ModelProto, sizes: Mapping[str, Mapping[int, int]]) -> None:
    """Let a graph accept only these sizes: input -> axis -> size. Sizes of the outputs that depend on them become unknown."""
    symbols = set()
    for item in model.graph.input:
        for axis, size in sizes.get(item.name, {}).items():
            dim = item.type.tensor_type.shape.dim[axis]
            symbols.add(dim.dim_param)
            dim.dim_value = size
    for item in model.graph.output:
        for dim in item.type.tensor_type.shape.dim:
            if symbols & set(re.findall(r"\w+", dim.dim_param)):
                dim.Clear()


def module_of(node: NodeProto) -> str:
    """The torch module that a node was exported from; empty if unknown.

    >>> from onnx.helper import make_node
    >>> module_of(make_node("Conv", [], [], name="layer1.0.conv1/Conv"))
    'layer1.0.conv1'
    """
    return node.name.rpartition("/")[0]


def tidy(model: ModelProto) -> None:
    """Remove what a graph does not need to run: metadata, stale shapes, unused and duplicate initializers."""
    graph = model.graph
    # after a dynamo export value_info disagrees with the shapes that quantization infers, which then fails
    del graph.value_info[:], model.metadata_props[:], graph.metadata_props[:]
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("doc_string")
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
    merge_initializers(graph)
    tie_transposed(graph)
    used = {node.domain for node in graph.node}
    kept = [(item.domain, item.version) for item in model.opset_import if item.domain in used | {""}]
    del model.opset_import[:]
    for domain, version in kept:
        model.opset_import.add(domain=domain, version=version)


def merge_initializers(graph: GraphProto) -> None:
    """Remove duplicate initializers, and those that no node reads."""
    from onnx import numpy_helper

    first: dict[Any, str] = {}
    same: dict[str, str] = {}
    outputs = {item.name for item in graph.output}
    for tensor in graph.initializer:
        if tensor.name not in outputs:
            same[tensor.name] = first.setdefault((tensor.data_type, _content(numpy_helper.to_array(tensor))), tensor.name)
    for node in _nodes(graph):
        node.input[:] = [same.get(name, name) for name in node.input]
    needed = {name for node in _nodes(graph) for name in node.input} | outputs
    kept = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def tie_transposed(graph: GraphProto) -> None:
    """Replace a matrix that is the transpose of another one, as for tied embeddings, by a Transpose node.

    The file then stores the matrix once; onnxruntime transposes it once, when it opens the graph.
    """
    from onnx import helper, numpy_helper

    matrices = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if len(tensor.dims) == 2 and numel(tensor) >= 1024}
    first: dict[Any, str] = {}
    for name, matrix in matrices.items():
        turned = first.get(_content(matrix.T))
        if turned is None:
            first[_content(matrix)] = name
            continue
        graph.initializer.remove(next(tensor for tensor in graph.initializer if tensor.name == name))
        graph.node.insert(0, helper.make_node("Transpose", [turned], [name], perm=[1, 0]))


def _content(array: np.ndarray) -> Any:
    return array.shape, hashlib.blake2b(np.ascontiguousarray(array).tobytes()).digest()


def untie_transposed(graph: GraphProto) -> None:
    """Undo `tie_transposed`: quantization needs a separate constant for each matrix product."""
    from onnx import numpy_helper

    held = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in held and not node.name]:
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(held[node.input[0]]).T), node.output[0]))
        graph.node.remove(node)


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for item in node.attribute:
            for inner in (item.g, *item.graphs):
                yield from _nodes(inner)


def shorten_names(graph: GraphProto) -> None:
    """Shorten tensor names and remove node names, which are several per cent of a small 8-bit graph."""
    if any(inner.node for node in graph.node for item in node.attribute for inner in (item.g, *item.graphs)):
        return
    keep = {item.name for item in (*graph.input, *graph.output)} | {""}
    short: dict[str, str] = {}
    for name in _tensor_names(graph):
        if name not in keep and name not in short:
            short[name] = _code(len(short), keep)
    for tensor in graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [short.get(name, name) for name in node.input]
        node.output[:] = [short.get(name, name) for name in node.output]
        node.name = ""


def _tensor_names(graph: GraphProto) -> Iterable[str]:
    return (*(tensor.name for tensor in graph.initializer), *(name for node in graph.node for name in (*node.input, *node.output)))


def _code(number: int, taken: Collection[str]) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    text = "" if number else "0"
    while number:
        number, digit = divmod(number, len(digits))
        text = digits[digit] + text
    while text in taken:
        text = f"_{text}"
    return text
