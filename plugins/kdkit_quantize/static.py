"""Static quantization: weights and activations in 8 bits, or 16, with ranges observed on calibration data.

The right choice for convolutional nets. `kdkit_quantize.arithmetic.clipping` explains how a range is chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from torch import nn

from kdkit import Batch, Context, KdError, Needs, param
from kdkit.backends.onnx import OnnxModel, module_of
from kdkit_quantize.arithmetic import Grid, Histogram, Range, choose_range
from kdkit_quantize.calibration import calibrate
from kdkit_quantize.int8_stage import Int8Stage, Plan, contained
from kdkit_quantize.layers import multiplies_activations
from kdkit_quantize.outliers import Columns, LargestByColumn, find_outliers, isolate, separate
from kdkit_quantize.tensor_names import neutralize_names, restore_names

if TYPE_CHECKING:
    from onnx import ModelProto

_WEIGHTED = ("Conv", "Gemm", "MatMul")
_BETWEEN = (
    "Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "MaxPool", "GlobalAveragePool", "AveragePool", "Concat", "Pad", "Resize",
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze",
)  # fmt: skip

_Ranges = dict[str, tuple[float, float]]

PAIR_BYTES = 100
"""Of a pair of quantize and dequantize in a graph, with scale and zero point."""


class Static(Int8Stage):
    """Hold weights and activations in 8 or 16 bits, with ranges observed on calibration data, in onnxruntime; for convolutional nets.

    Operations between the convolutions (sums, activations, pooling) stay in 8 bits too. In transformers only products with
    weights are quantized, and columns of activations that are far larger than all others are kept in float.
    """

    id: ClassVar = "quantize.static"
    known_as: ClassVar[tuple[str, ...]] = ("PTQ", "static quantization", "post-training static quantization")
    needs: ClassVar = Needs(calibration=True, packages=("onnx", "onnxruntime"))
    offered: ClassVar = (*_WEIGHTED, "Gather", *_BETWEEN)

    method: Literal["minmax", "mse", "kl", "entropy", "percentile", "admm"] = param(
        "minmax",
        "how an activation's range follows from the values seen: all of it, least squared error, least information lost (kl, also called entropy), "
        "without outliers, or ADMM",
        search=("minmax", "mse", "entropy"),
        main=True,
    )
    percentile: float = param(99.99, "share of values within the range, for --method percentile", gt=50, le=100, unit="%")
    activations: Literal["asymmetric", "symmetric"] = param("asymmetric", "asymmetric ranges lose no level where values are of one sign")
    layout: Literal["auto", "u8s8", "u8u8", "s8s8", "u16s8", "u16s16", "s16s8", "s16s16"] = param(
        "auto", "types of activations and weights; auto takes what this machine is fastest at; 16 bits are nearly exact, and slower than float", advanced=True
    )  # type: ignore[assignment]
    outliers: int = param(16, "of a transformer: columns of an activation to keep in float, at most; only those that are far larger than the others", ge=0)
    batches: int = param(16, "calibration batches to stream", ge=1, main=True)
    form: Literal["pairs", "operators", "auto"] = param(
        "pairs",
        "pairs of quantize and dequantize, which other runtimes read too; or 8-bit operators, a smaller file for onnxruntime alone; auto: operators where they run",
        advanced=True,
    )

    def check(self, model: nn.Module, context: Context) -> Iterable[str]:
        """Options that can't go together."""
        yield from super().check(model, context)
        if self.form == "operators" and self.layout == "u8u8":
            yield "quantize static: --layout u8u8 --form operators: 8-bit convolutions take s8 weights; use --form pairs"
        if self.form == "operators" and "16" in self.layout:
            yield f"quantize static: --layout {self.layout} --form operators: onnxruntime has no 16-bit operators; use --form pairs"

    def usual(self, model: ModelProto) -> tuple[str, ...]:
        """For a transformer the products with weights; otherwise all that runs in 8 bits."""
        return ("MatMul", "Gemm", "Gather") if multiplies_activations(model) else (*_WEIGHTED, "Gather", *_BETWEEN)

    def added_bytes(self, plan: Plan) -> int:
        """With the pairs and, for each layer, the scales of its bias."""
        if self._form(plan.attention) == "operators":
            return super().added_bytes(plan)
        operators = self.chosen_operators(plan.model)
        return 13 * self.channels(plan) + PAIR_BYTES * (len(plan.layers) + sum(node.op_type in operators for node in plan.model.graph.node))

    @contained()
    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Observe ranges, then quantize."""
        assert isinstance(model, OnnxModel)
        plan = self.plan(model.graph())
        if plan.attention:
            context.note("a transformer: products of activations stay in float; quantize dynamic needs no data")
        columns = self._outliers(model, plan, context) if plan.attention and self.outliers else {}
        seen = self.observe(model, plan, context, columns)
        ranges = self.ranges(seen)
        made = self._made(model, plan, ranges, columns, context)
        self.tell(made, plan, context)
        self._tell_clipping(seen, ranges, plan, context)
        return made

    def observe(self, model: OnnxModel, plan: Plan, context: Context, without: Columns | None = None) -> Mapping[str, Range]:
        """What the calibration data gives in each activation whose range is needed, outlier columns left out."""
        observer = Range if self.method == "minmax" else Histogram
        return calibrate(model, self.watched(plan), context.calibration(self.batches), context, observer, self.batches, without)

    def _outliers(self, model: OnnxModel, plan: Plan, context: Context) -> Columns:
        """The columns of the inputs of products that stay in float."""
        products = {layer.node for layer in plan.layers if layer.operator == "MatMul"}
        inputs = [node.input[0] for node in plan.model.graph.node if node.name in products]
        seen = calibrate(model, inputs, context.calibration(self.batches), context, LargestByColumn, self.batches)
        found = {name: columns for name, each in seen.items() if (columns := find_outliers(each.largest, self.outliers)).size}
        if found:
            split = sum(name in found for name in inputs)
            context.note(f"outlier columns in float: {sum(columns.size for columns in found.values())} in {len(found)} activations, {split} products split")
        return found

    def ranges(self, seen: Mapping[str, Range]) -> _Ranges:
        """The range of each activation, by the method."""
        grid, symmetric = Grid(self.bits[0]), self.activations == "symmetric"
        return {name: choose_range(each, self.method, grid, symmetric, self.percentile) for name, each in seen.items()}

    def _tell_clipping(self, seen: Mapping[str, Range], ranges: _Ranges, plan: Plan, context: Context) -> None:
        """Note the share of the activations outside of their ranges, and where it is largest."""
        histograms = {name: each for name, each in seen.items() if isinstance(each, Histogram)}
        if not histograms:
            return
        outside = {name: each.share_outside(*ranges[name]) for name, each in histograms.items()}
        total = sum(each.counts.sum() for each in histograms.values())
        share = sum(outside[name] * each.counts.sum() for name, each in histograms.items()) / max(1, total)
        most = max(outside, key=outside.__getitem__)
        where = f"; most in {_place(plan.model, most)}: {outside[most]:.2%}, kept {_interval(ranges[most])} of {_interval((seen[most].lowest, seen[most].highest))}"
        context.note(f"clipping by {self.method}: {share:.3%} of the activations are outside of their ranges{where if outside[most] else ''}")

    def _made(self, model: OnnxModel, plan: Plan, ranges: _Ranges, columns: Columns, context: Context) -> OnnxModel:
        """In the smaller form, if onnxruntime runs it."""
        form = self._form(plan.attention)
        made = self.pack(self._quantize(*self._apart(model, ranges, columns), form), plan, model)
        if form == "pairs" or (failure := _failure(made, context)) is None:
            return made
        if self.form == "operators":
            raise KdError(f"quantize static: as 8-bit operators this model doesn't run: {failure.message}", "--form pairs") from failure
        context.note("as pairs of quantize and dequantize: onnxruntime doesn't run this model as 8-bit operators")
        return self.pack(self._quantize(*self._apart(model, ranges, columns), "pairs"), plan, model)

    def _apart(self, model: OnnxModel, ranges: _Ranges, columns: Columns) -> tuple[Plan, _Ranges]:
        """The plan of a graph and its ranges; in a transformer products read a copy of what skip connections read, and outliers go past them."""
        plan = self.plan(model.graph())
        if not plan.attention:
            return plan, ranges
        separate(plan.model, plan.layers, columns)
        copies = isolate(plan.model, plan.layers)
        return plan, ranges | {copy: ranges[name] for copy, name in copies.items() if name in ranges}

    def _form(self, attention: bool) -> str:
        if self.form != "auto":
            return self.form
        plain = [each.name for each in self.types()] == ["QUInt8", "QInt8"] and self.activations == "asymmetric" and self.weights == "symmetric"
        return "operators" if plain and not attention else "pairs"

    def watched(self, plan: Plan) -> list[str]:
        """The activations whose ranges are needed: the inputs of the layers and, except in transformers, everything between the layers."""
        import onnx

        inferred = onnx.shape_inference.infer_shapes(plan.model).graph
        floats = {item.name for item in (*inferred.value_info, *inferred.input, *inferred.output) if item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
        floats -= {tensor.name for tensor in inferred.initializer}
        if plan.attention:
            nodes = {layer.node for layer in plan.layers}
            return [node.input[0] for node in plan.model.graph.node if node.name in nodes and node.input[0] in floats]
        operators = self.chosen_operators(plan.model)
        return [name for node in plan.model.graph.node if node.op_type in operators for name in (*node.input, *node.output) if name in floats]

    def _quantize(self, plan: Plan, ranges: _Ranges, form: str) -> ModelProto:
        return restore_names(*self.quantized(plan, ranges, form))

    def quantized(self, plan: Plan, ranges: _Ranges, form: str = "pairs", overrides: Mapping[str, Any] | None = None) -> tuple[ModelProto, dict[str, str]]:
        """The quantized graph, whose tensors have new names.

        Args:
            plan: of the graph, which is changed in place.
            ranges: of the activations, by the name of the tensor.
            overrides: of single tensors, by name, as onnxruntime takes them: a dict with scale and zero point for each channel.

        Returns:
            (graph, the new name of each tensor of the plan's graph).
        """
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
        from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.quant_utils import QuantizationMode

        names = neutralize_names(plan.model)
        seen = TensorsData(CalibrationMethod.MinMax, {names[name]: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()})
        activation_type, weight_type = self.types()
        modes = () if form == "pairs" else (QuantizationMode.QLinearOps, True)
        only, skipped = ([layer.node for layer in plan.layers], []) if plan.attention else ([], [layer.node for layer in plan.left])
        extra: dict[str, Any] = {"MatMulConstBOnly": True, "WeightSymmetric": self.weights == "symmetric", "ActivationSymmetric": self.activations == "symmetric"}
        if plan.attention:
            extra["OpTypesToExcludeOutputQuantization"] = ["MatMul", "Gemm"]
        if overrides:
            extra |= {"TensorQuantOverrides": {names[name]: given for name, given in overrides.items()}, "QDQDisableWeightAdjustForInt32Bias": True}
        quantizer = (QDQQuantizer if form == "pairs" else ONNXQuantizer)(
            plan.model, self.per_channel, self.narrow, *modes, weight_type, activation_type, seen, only, skipped, list(self.chosen_operators(plan.model)), extra
        )  # fmt: skip
        quantizer.quantize_model()
        return quantizer.model.model, names


def _place(model: ModelProto, tensor: str) -> str:
    """The module that makes an activation, with the operator; or the input's name."""
    node = next((node for node in model.graph.node if tensor in node.output), None)
    return f"input {tensor}" if node is None else f"{module_of(node) or node.name} ({node.op_type})"


def _interval(ends: tuple[float, float]) -> str:
    return f"[{ends[0]:.3g}, {ends[1]:.3g}]"


def _failure(made: OnnxModel, context: Context) -> KdError | None:
    """Why onnxruntime doesn't run a graph; None when it does."""
    try:
        for batch in context.calibration(1):
            Batch(batch.args, batch.kwargs).call(made)
    except KdError as error:
        return error
    return None
