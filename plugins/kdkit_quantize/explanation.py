"""How a quantized layer computes: its integers step by step, with integer arithmetic alone, beside those of onnxruntime.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018 (arXiv:1712.05877).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from kdkit import Batch, KdError, did_you_mean
from kdkit.backends.onnx import OnnxModel, open_session
from kdkit.display import Table, histogram
from kdkit_quantize.arithmetic import Grid, dequantize, multiplier_and_shift, requantize
from kdkit_quantize.layers import Layer, layers_of

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_WALKED = {"Conv", "Gemm", "MatMul"}
BINS = 40
"""Of the picture."""


@dataclass(frozen=True)
class Coding:
    """How a tensor is stored.

    Attributes:
        scale: (), or (channels,) for a scale for each output channel.
        zero: of the same shape.
        grid: its integers.
    """

    scale: NDArray[np.float32]
    zero: NDArray[np.integer]
    grid: Grid


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer of a graph of pairs: x and w are dequantized, y is quantized.

    Attributes:
        node: the convolution or product.
        x, w, y: how its input, weight and output are stored.
        weight: its integers.
        bias: int32, in steps of scale_x · scale_w; None if it has none.
        read, written: names of the graph's integer tensors for its input and output.
    """

    node: NodeProto
    x: Coding
    w: Coding
    y: Coding
    weight: NDArray[np.integer]
    bias: NDArray[np.int32] | None
    read: str
    written: str

    def sums(self, integers: NDArray[np.integer]) -> NDArray[np.int64]:
        """Of integer products and bias, what a 32-bit register of the processor holds: (items, ...).

        Args:
            integers: of the input.
        """
        centred = torch.from_numpy(integers.astype(np.float64) - self.x.zero)  # exact: a float64 holds integers up to 2^53
        weight = torch.from_numpy(self.weight.astype(np.float64) - self._by_channel(self.w.zero, self.weight.ndim, self.axis))
        made = _convolve(self.node, centred, weight) if self.node.op_type == "Conv" else centred @ (weight.T if _attributes(self.node).get("transB") else weight)
        sums = made.numpy().astype(np.int64)
        return sums if self.bias is None else sums + self._along_output(self.bias.astype(np.int64), sums.ndim)

    def outputs(self, sums: NDArray[np.int64]) -> NDArray[np.integer]:
        """The integers of the output, from those sums."""
        multiplier, shift = (self._along_output(each, sums.ndim) for each in multiplier_and_shift(self.factor))
        return requantize(sums, multiplier, shift, self.y.zero, self.y.grid)

    @property
    def factor(self) -> NDArray[np.float32]:
        """What a sum is multiplied by: scale_x · scale_w / scale_y."""
        return self.x.scale * self.w.scale / self.y.scale

    @property
    def axis(self) -> int:
        """The axis of the output channels in the weight."""
        return 0 if self.node.op_type == "Conv" or _attributes(self.node).get("transB") else 1

    def _along_output(self, values: NDArray[Any], rank: int) -> NDArray[Any]:
        return self._by_channel(values, rank, 1 if self.node.op_type == "Conv" else rank - 1)

    @staticmethod
    def _by_channel(values: NDArray[Any], rank: int, axis: int) -> NDArray[Any]:
        return values.reshape([-1 if each == axis else 1 for each in range(rank)]) if values.ndim else values


@dataclass(frozen=True, repr=False)
class Explanation:
    """How one layer of a version computes.

    Attributes:
        version, layer: names.
        codings: a row for input, weight and output: type, scale, zero point, range, share at its ends.
        steps: one output number, step by step.
        equal, count: how many integers of the output are onnxruntime's, and of how many.
        edges, shares: the picture: outputs of the float model, where it is known, and of this version.
    """

    version: str
    layer: str
    codings: Table
    steps: Table
    equal: int
    count: int
    edges: tuple[float, ...]
    shares: Mapping[str, tuple[float, ...]]

    @property
    def summary(self) -> str:
        """One line."""
        return f"{self.layer} of {self.version}: {self.equal:,} of {self.count:,} integers that integer arithmetic gives are onnxruntime's"

    def __repr__(self) -> str:
        return "\n".join([self.summary, repr(self.codings), repr(self.steps)])

    def _repr_html_(self) -> str:
        chart = histogram(self.edges, self.shares, f"Outputs of {self.layer}", "value; up: share of the outputs")
        return f"<p>{escape(self.summary)}</p>{self.codings._repr_html_()}{self.steps._repr_html_()}<div>{chart}</div>"


def explain_layer(lineage: Sequence[nn.Module], version: str, layer: str, item: Batch | None) -> Explanation:
    """Explain a layer of the first of `lineage` on one item.

    Args:
        lineage: the model, and those that it was made from, nearest first: the names of the layers are in the graph that was quantized.
        version: its name.
        layer: the layer's name; empty for the first one.
        item: inputs.

    Raises:
        KdError: the version is not of quantize static, was written as operators, or has no such layer; or there is no data.
    """
    model = lineage[0]
    if not isinstance(model, OnnxModel) or not model.packed:
        raise KdError(f"explain: {version} has no quantized layers", "%kd quantize static, then %kd explain quantize")
    if item is None:
        raise KdError("explain needs one item of data", "%kd set --eval {data}, or --example {batch}")
    source = next((each for each in lineage[1:] if isinstance(each, OnnxModel) and not each.packed), None)
    graph = model.graph()
    found = quantized_layers(graph, layers_of(source.graph()) if source else [])
    if not found:
        raise KdError(
            f"explain: {version} has no layer as pairs of quantize and dequantize", "%kd quantize static writes them; --form operators and quantize dynamic do not"
        )
    name = layer or next(iter(found))
    if name not in found:
        raise KdError(f"explain: {version} has no quantized layer {name!r}", did_you_mean(name, found), f"quantized: {', '.join(found)}")
    quantized = found[name]
    read, written = _run(graph, [quantized.read, quantized.written], model.feeds(Batch(item.args, item.kwargs)))
    sums = quantized.sums(read)
    mine = quantized.outputs(sums)
    values = {"8 bits": dequantize(written, quantized.y.scale, quantized.y.zero)}
    floats = _float_outputs(source, name, model.feeds(Batch(item.args, item.kwargs)), written.shape) if source else None
    if floats is not None:
        values = {"float": floats, **values}
    edges = np.histogram_bin_edges(np.concatenate([each.ravel() for each in values.values()]), BINS)
    shares = {kind: tuple((np.histogram(each, edges)[0] / each.size).tolist()) for kind, each in values.items()}
    place = np.unravel_index(int(np.abs(sums).argmax()), sums.shape)
    return Explanation(
        version,
        name,
        _codings(quantized, read, written),
        _steps(quantized, sums, mine, written, floats, place),
        int((mine == written).sum()),
        written.size,
        tuple(edges.tolist()),
        shares,
    )


def quantized_layers(graph: ModelProto, source: Sequence[Layer]) -> dict[str, QuantizedLayer]:
    """The layers of a graph of pairs by name, in order.

    Args:
        graph: quantized; its nodes have lost their names.
        source: the layers of the graph that it was made from, in the same order; without, the names are "Conv 1", "Conv 2", ...
    """
    from onnx import numpy_helper

    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    maker = {name: node for node in graph.graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    names = [layer.module for layer in source if layer.operator in _WALKED]
    found: dict[str, QuantizedLayer] = {}
    number = 0
    for node in graph.graph.node:
        if node.op_type not in _WALKED or not _has_weight(node, maker, held):
            continue
        name = names[number] if number < len(names) else f"{node.op_type} {number + 1}"
        number += 1
        layer = _quantized_layer(node, held, maker, readers)
        if layer is not None:
            found[name] = layer
    return found


def _has_weight(node: NodeProto, maker: Mapping[str, NodeProto], held: Mapping[str, NDArray[Any]]) -> bool:
    made = maker.get(node.input[1])
    return node.input[1] in held or (made is not None and made.op_type == "DequantizeLinear" and made.input[0] in held)


def _quantized_layer(node: NodeProto, held: Mapping[str, NDArray[Any]], maker: Mapping[str, NodeProto], readers: Mapping[str, list[NodeProto]]) -> QuantizedLayer | None:
    x, w = (maker.get(name) for name in node.input[:2])
    if x is None or w is None or x.op_type != "DequantizeLinear" or w.op_type != "DequantizeLinear":
        return None
    following = readers.get(node.output[0], [])
    if len(following) == 1 and following[0].op_type in ("Relu", "Clip"):
        following = readers.get(following[0].output[0], [])
    quantize = next((each for each in following if each.op_type == "QuantizeLinear"), None)
    if quantize is None or len(following) > 1:
        return None
    b = maker.get(node.input[2]) if len(node.input) > 2 else None
    bias = held[b.input[0]] if b is not None else None
    return QuantizedLayer(node, _coding(x, held), _coding(w, held), _coding(quantize, held), held[w.input[0]], bias, x.input[0], quantize.output[0])


def _coding(pair: NodeProto, held: Mapping[str, NDArray[Any]]) -> Coding:
    scale = held[pair.input[1]]
    zero = held[pair.input[2]] if len(pair.input) > 2 else np.zeros_like(scale, np.uint8)
    return Coding(scale, zero.astype(np.int64), Grid(8 * zero.dtype.itemsize, zero.dtype.kind == "i"))


def _run(graph: ModelProto, names: list[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Tensors inside a graph, as onnxruntime computes them with its 8-bit kernels."""
    import onnx

    outputs = {item.name for item in graph.graph.output}
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in outputs)
    return open_session(graph.SerializeToString()).run(names, dict(feeds))


def _float_outputs(source: OnnxModel, name: str, feeds: Mapping[str, NDArray[Any]], shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    """The layer's outputs in the graph that was quantized, behind its ReLU if one follows."""
    graph = source.graph()
    node = next(layer.node for layer in layers_of(graph) if layer.module == name and layer.operator in _WALKED)
    made = next(each for each in graph.graph.node if each.name == node).output[0]
    following = [each for each in graph.graph.node if made in each.input]
    if len(following) == 1 and following[0].op_type in ("Relu", "Clip"):
        made = following[0].output[0]
    (found,) = _run(graph, [made], feeds)
    return found if found.shape == shape else None


def _attributes(node: NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def _convolve(node: NodeProto, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    options, rank = _attributes(node), x.dim() - 2
    pads = options.get("pads", [0] * 2 * rank)
    sides = [each for axis in reversed(range(rank)) for each in (pads[axis], pads[axis + rank])]
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    return convolve(
        functional.pad(x, sides), weight, stride=options.get("strides", [1] * rank), dilation=options.get("dilations", [1] * rank), groups=options.get("group", 1)
    )


def _codings(layer: QuantizedLayer, read: NDArray[np.integer], written: NDArray[np.integer]) -> Table:
    """Input, weight and output: type, scale, zero point, range, and the share of integers at its ends, where values are clipped."""
    rows = []
    for name, coding, integers in (("input", layer.x, read), ("weight", layer.w, layer.weight), ("output", layer.y, written)):
        low, high = (dequantize(end, coding.scale, coding.zero) for end in (coding.grid.lowest, coding.grid.highest))
        ends = float(((integers == coding.grid.lowest) | (integers == coding.grid.highest)).mean())
        kind = f"{'' if coding.grid.signed else 'u'}int{coding.grid.bits}"
        rows.append([name, kind, _span(coding.scale), _span(coding.zero), f"{low.min():.4g} to {high.max():.4g}", f"{ends:.1%}"])
    return Table(["tensor", "integers", "scale", "zero point", "range", "at the ends"], rows)


def _span(values: NDArray[Any]) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}, {values.size} channels"


def _steps(
    layer: QuantizedLayer, sums: NDArray[np.int64], mine: NDArray[np.integer], written: NDArray[np.integer], floats: NDArray[np.float32] | None, place: Any
) -> Table:
    """One number of the output, from the sum of products to the integer and what it stands for."""
    channel = int(place[1 if layer.node.op_type == "Conv" else -1])
    factor, bias = np.broadcast_to(layer.factor, max(1, layer.factor.size)), layer.bias
    scale = float(factor[channel % factor.size])
    multiplier, shift = multiplier_and_shift(scale)
    own = 0 if bias is None else int(bias[channel])
    scaled = float(sums[place]) * scale
    rows = [
        [f"sum of integer products at {tuple(map(int, place))}", str(int(sums[place]) - own)],
        ["bias, in the same steps", str(own)],
        ["scale of input · scale of weight / scale of output", f"{scale:.6g}"],
        ["the same in integers: multiplier / 2^shift", f"{int(multiplier)} / 2^{int(shift)}"],
        ["scaled, and rounded", f"{scaled:.4f} -> {round(scaled)}"],
        ["with the zero point, within the grid", str(int(mine[place]))],
        ["onnxruntime's integer", str(int(written[place]))],
        ["the number that it stands for", f"{float(dequantize(written[place], layer.y.scale, layer.y.zero)):.5g}"],
    ]
    if floats is not None:
        rows.append(["the same of the float model", f"{float(floats[place]):.5g}"])
    return Table(["step", "value"], rows)
