"""What a graph computes from constants alone: onnxruntime computes it while it opens the graph, whatever time and memory that takes.

So a graph of a stranger is checked first: how often its functions expand, and how large the values are that need no input.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kdkit.backends.onnx.element_sizes import count_bytes
from kdkit.errors import KdError, brief

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

NODES = 1_000_000
"""Nodes of a graph, with its functions expanded."""
BYTES, TIMES_BYTES = 256 * 2**20, 8
"""Of the values that need no input: so many, and so many for each byte of the file."""
SMALL = 1024
"""Bytes of a tensor that may be a shape, whose numbers tell the sizes of others."""
FOLDING = "ConstantFolding"
"""onnxruntime's optimizer that computes constants."""
_ELEMENTWISE = """Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Clip Cos Cosh
DequantizeLinear Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mod Mul Neg
Not Or PRelu Pow QuantizeLinear Reciprocal Relu Round Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Tan Tanh Where Xor"""
_MOVES = """Concat Constant ConstantOfShape CumSum Expand EyeLike Flatten Gather GatherElements GatherND NonZero OneHot Pad Range ReduceMax ReduceMean ReduceMin
ReduceProd ReduceSum Reshape ScatterElements ScatterND Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze"""
CHEAP = frozenset(f"{_ELEMENTWISE} {_MOVES}".split())
"""Operators that take about as long as their inputs and outputs are large."""


def check_expansion(model: ModelProto, what: str) -> None:
    """Check that the functions of a graph do not call themselves, and do not expand to an enormous graph.

    Raises:
        KdError: they do.
    """
    functions = {(each.domain, each.name): each for each in model.functions}
    counts: dict[tuple[str, str], int] = {}

    def count(nodes: Iterable[NodeProto], within: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key in functions and key not in counts:
                if key in within or len(within) > 64:
                    raise KdError(f"{what}: the function {brief(node.op_type)} contains itself, or is nested deeper than 64 levels", "save or download it again")
                counts[key] = count(functions[key].node, (*within, key))
            total += 1 + counts.get(key, 0) + sum(count(graph.node, within) for graph in _subgraphs(node))
            if total > NODES:
                raise KdError(f"{what}: its functions expand to more than {NODES:,} nodes", "export the model without functions")
        return total

    count(model.graph.node, ())


def check_constants(model: ModelProto, size: int, what: str) -> tuple[str, ...]:
    """Check the size of all that a graph computes without an input.

    Args:
        model: the graph, of which `check_expansion` is true; it is not changed.
        size: bytes of its file.
        what: begins the messages.

    Returns:
        The optimizers of onnxruntime to disable: that of constants, if what it would compute can't be bounded.

    Raises:
        KdError: these values take much more memory than the file.
    """
    shapes, most = _shapes(model), BYTES + TIMES_BYTES * size
    held = sum(math.prod(each.dims) * 8 for each in model.graph.sparse_initializer)
    bounded = True
    for node, name in _constant_values(model):
        found = shapes.get(name)
        bounded &= found is not None and node.op_type in CHEAP and node.domain in ("", "ai.onnx")
        held += found or 0
        if held > most:
            raise KdError(
                f"{what}: its node {brief(node.name or node.op_type)} makes constants of more than {most:,} bytes, and the file has {size:,}", "download it again"
            )
    return () if bounded else (FOLDING,)


def _constant_values(model: ModelProto) -> Iterator[tuple[NodeProto, str]]:
    """(node, name of an output) for each value that depends on no input."""
    known = {tensor.name for tensor in model.graph.initializer} | {each.values.name for each in model.graph.sparse_initializer}
    known -= {each.name for each in model.graph.input}
    yield from _constants_in(model.graph, known)
    for function in model.functions:
        yield from _constants_in(function, set())


def _constants_in(graph: GraphProto | FunctionProto, known: set[str]) -> Iterator[tuple[NodeProto, str]]:
    known = known | {tensor.name for tensor in getattr(graph, "initializer", ())}
    for node in graph.node:
        inner = list(_subgraphs(node))
        for each in inner:
            yield from _constants_in(each, known - {item.name for item in each.input})
        if all(not name or name in known for name in node.input) and (not inner or all(map(_is_closed, inner))):
            known |= {*node.output}
            yield from ((node, name) for name in node.output if name)


def _is_closed(graph: GraphProto) -> bool:
    """Whether a subgraph uses no value from outside."""
    made = {each.name for each in (*graph.input, *graph.initializer)} | {name for node in graph.node for name in node.output}
    return all(name in made for node in graph.node for name in node.input if name)


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        yield from ([attribute.g] if attribute.HasField("g") else ())
        yield from attribute.graphs


def _shapes(model: ModelProto) -> Mapping[str, int]:
    """Bytes of the values whose size follows from the graph, by name; names of subgraphs and functions are left out."""
    import onnx

    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.name = "light"
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= SMALL:
            graph.initializer.add().CopyFrom(tensor)
        elif tensor.name not in {each.name for each in model.graph.input}:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    try:
        found = onnx.shape_inference.infer_shapes(light).graph
    except Exception:  # onnx has several errors for graphs that do not fit; onnxruntime refuses such a graph with its reason
        return {}
    return {each.name: size for each in (*found.value_info, *found.output) if (size := _size(each.type)) is not None}


def _size(kind: Any) -> int | None:
    """Bytes of a value of a type; None if its shape is not fixed, or if it is text."""
    shape = kind.tensor_type.shape if kind.HasField("tensor_type") and kind.tensor_type.HasField("shape") else None
    if shape is None or not all(axis.HasField("dim_value") for axis in shape.dim):
        return None
    try:
        return count_bytes([axis.dim_value for axis in shape.dim], kind.tensor_type.elem_type)
    except ValueError:
        return None
