"""Dynamic quantization: weights in 8 bits, activations quantized as they come, with a scale for each call.

No calibration data. The right choice for transformers and LSTMs, whose time goes into products with weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from kdkit import Context, KdError
from kdkit.backends.onnx import OnnxModel, every_name
from kdkit_quantize.int8_stage import Int8Stage, Plan, contained
from kdkit_quantize.tensor_names import neutralize_names, restore_names

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

WORTH = 0.1
"""Share of the weights below which quantizing is hardly anything."""


class Dynamic(Int8Stage):
    """Hold weights in 8 bits and quantize activations on the fly, in onnxruntime; for transformers and LSTMs.

    Needs no data. Products of two activations, as in attention, stay in float. Convolutions want quantize static.
    """

    id: ClassVar = "quantize.dynamic"
    known_as: ClassVar[tuple[str, ...]] = ("PTQ", "dynamic quantization", "post-training dynamic quantization")
    offered: ClassVar = ("MatMul", "Gemm", "LSTM", "Gather", "Conv")

    def check(self, model: nn.Module, context: Context) -> Iterable[str]:
        """Options that can't go together."""
        yield from super().check(model, context)
        if self.layout == "s8s8":
            yield "quantize dynamic: --layout s8s8: activations that are quantized on the fly are always u8"

    def usual(self, model: ModelProto) -> tuple[str, ...]:
        """All but convolutions, which run slower than in float when quantized on the fly."""
        return ("MatMul", "Gemm", "LSTM", "Gather")

    @contained()
    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Quantize the weights."""
        assert isinstance(model, OnnxModel)
        plan = self.plan(_products(model.graph()))
        self._refuse_convolutional(plan)
        # in 8 bits, fused skip connections are slower than apart: 1.16 times on MiniLM
        without = ("SkipLayerNormFusion",) if plan.attention else ()
        made = self.pack(self._quantize(plan), plan, model, without)
        self.tell(made, plan, context)
        return made

    def nothing(self, plan: Plan) -> KdError:
        """Point to static where there are only convolutions."""
        if any(layer.operator == "Conv" for layer in plan.left):
            return KdError("quantize dynamic has nothing to quantize but convolutions, and they need ranges from data", "%kd quantize static")
        return super().nothing(plan)

    def _refuse_convolutional(self, plan: Plan) -> None:
        total = plan.elements + sum(layer.elements for layer in plan.left)
        if plan.elements < WORTH * total and any(layer.operator == "Conv" for layer in plan.left) and not (self.layers or self.operators):
            names = ", ".join(layer.module for layer in plan.layers[:4])
            raise KdError(
                f"quantize dynamic has nothing to quantize but {names}, {plan.elements / total:.1%} of the weights: convolutions need ranges from data",
                "%kd quantize static",
                f"to quantize just that: %kd quantize dynamic --layers {plan.layers[0].module}",
            )

    def _quantize(self, plan: Plan) -> ModelProto:
        from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
        from onnxruntime.quantization.quant_utils import QuantizationMode, QuantType

        _, weight_type = self.types()
        names = neutralize_names(plan.model)
        quantizer = ONNXQuantizer(
            plan.model,
            self.per_channel,
            self.narrow,
            QuantizationMode.IntegerOps,
            False,
            weight_type,
            QuantType.QUInt8,
            None,
            [layer.node for layer in plan.layers],
            [],
            sorted({layer.operator for layer in plan.layers}),
            {"MatMulConstBOnly": True, "WeightSymmetric": self.weights == "symmetric"},
        )
        quantizer.quantize_model()
        return restore_names(quantizer.model.model, names)


def _products(model: ModelProto) -> ModelProto:
    """The graph with every Gemm as a product and a sum, which is how onnxruntime quantizes it on the fly."""
    from onnxruntime.quantization.onnx_model import ONNXModel

    _separate_weights(model.graph)
    ONNXModel(model).replace_gemm_with_matmul()
    return model


def _separate_weights(graph: GraphProto) -> None:
    """Give every Gemm a weight of its own: onnxruntime transposes the weight in place, once for each Gemm that reads it."""
    held = {tensor.name: tensor for tensor in graph.initializer}
    taken, read = every_name(graph), {item.name for item in graph.output}
    for node in graph.node:
        name = node.input[1] if node.op_type == "Gemm" else ""
        if name in held and (name in read or _readers(graph, name) > 1):
            copied = next(free for number in itertools.count(1) if (free := f"{name}_{number}") not in taken)
            taken.add(copied)
            graph.initializer.add().CopyFrom(held[name])
            graph.initializer[-1].name = node.input[1] = copied


def _readers(graph: GraphProto, name: str) -> int:
    return sum(name in node.input for node in graph.node)
