"""Quantization-aware training: the model trains while it computes what its 8-bit form will.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018 (arXiv:1712.05877);
Esser et al., "Learned Step Size Quantization", ICLR 2020 (arXiv:1902.08153).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from kdkit import Batch, Context, Forecast, KdError, Needs, Step, Term, TrainPart, TrainStage, Trait, param
from kdkit.backends.onnx import OnnxModel, open_session, to_onnx
from kdkit_quantize.arithmetic import Grid
from kdkit_quantize.int8_stage import Plan, contained
from kdkit_quantize.layers import Layer
from kdkit_quantize.simulation.attach import ATTRIBUTE, Simulation, attach, detach
from kdkit_quantize.simulation.placement import find_calls, record_calls
from kdkit_quantize.simulation.quantizers import ActivationQuantizer, folding
from kdkit_quantize.static import Static
from kdkit_quantize.tensor_names import restore_names

if TYPE_CHECKING:
    from onnx import ModelProto

ITEMS = 2
"""Items on which the calls of the forward are compared with the tensors of the graph."""


class Qat(TrainStage):
    """Train with simulated quantization, and quantize: a model in 8 bits, or fewer, that computes what was trained.

    Activations are rounded exactly where onnxruntime quantizes them, weights with a scale for each channel and their BatchNorm folded in. `lsq` learns
    all scales; `ste` keeps those of weights, and follows the range of activations by a moving average. Weights of less than 8 bits are stored in bytes.
    """

    id: ClassVar = "quantize.qat"
    known_as: ClassVar[tuple[str, ...]] = ("QAT", "quantization-aware training", "LSQ", "fake quantization")
    needs: ClassVar = Needs(example=True, train=True, calibration=True, packages=("onnx", "onnxruntime", "onnxscript"))
    requires: ClassVar = frozenset({Trait.TRAINABLE, Trait.FLOAT_WEIGHTS})
    forbids: ClassVar = frozenset({Trait.ONNX, Trait.ADAPTERS_ATTACHED, Trait.FAKE_QUANT})
    adds: ClassVar = frozenset({Trait.ONNX, Trait.PACKED_WEIGHTS})
    removes: ClassVar = frozenset({Trait.TRAINABLE, Trait.FREE_STRUCTURE, Trait.FLOAT_WEIGHTS, Trait.MASKS_PENDING})

    bits: int = param(8, "of a weight; activations have 8", ge=2, le=8, search=(2, 8), main=True)
    method: Literal["lsq", "ste"] = param("lsq", "learn the scales, or keep them", search=("lsq", "ste"), main=True)
    labels: bool = param(True, "train on labels; --no-labels leaves the loss to the other stages of a together group, such as distill soft")
    layers: tuple[str, ...] = param((), "only the layers of these modules, by name or pattern; default: all", names="layers")
    skip: tuple[str, ...] = param((), "modules whose layers stay in float: names or patterns", names="layers")
    batches: int = param(8, "calibration batches for the first ranges", ge=1)

    def required_inputs(self) -> Needs:
        return self.needs | Needs(labels=self.labels)

    def forecast(self, model: nn.Module, context: Context) -> Forecast:
        """The size of the graph, without training."""
        return self._static.forecast(to_onnx(model, context.example), context)

    def apply(self, model: nn.Module, context: Context) -> nn.Module | None:
        """Train alone, on labels."""
        if not self.labels:
            raise KdError(
                "quantize qat --no-labels has nothing to train for",
                "put it in a together group with distill soft",
                "%kd quantize static needs neither labels nor training",
            )
        return super().apply(model, context)

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return QatPart(self.labels)

    @contained()
    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Find where onnxruntime quantizes, and simulate it there."""
        static, onnx = self._static, to_onnx(model, context.example)
        plan = static.plan(onnx.graph())
        ranges = static.ranges(static.observe(onnx, plan, context))
        places = _places(*static.quantized(static.plan(onnx.graph()), ranges))
        item = Batch(context.example.args, context.example.kwargs)[:ITEMS]
        calls, norms = record_calls(model, item)
        found = find_calls(calls, _values(onnx, [name for name in places if name not in onnx.signature.inputs], item))
        quantizers = nn.ModuleDict({place.key: ActivationQuantizer(place.scale, place.zero, place.grid, self.method == "lsq") for place in places.values()})
        simulation = Simulation(
            quantizers,
            {name: places[name].key for name in places if name in found or name in onnx.signature.inputs},
            {name: places[name].key for name in places if name in onnx.signature.inputs},
            {number: (calls[number].function, places[name].key) for name, number in found.items()},
            onnx.signature.parameters,
        )
        layers = _layers(model, onnx, plan, norms)
        attach(model, simulation, self._bits, self.method == "lsq", layers)
        context.note(f"simulated: weights of {len(layers)} layers in {self._bits} bits, {len(simulation.tensors)} of {len(places)} activations in 8")
        return model

    @contained()
    def finish(self, model: nn.Module, context: Context) -> nn.Module:
        """Quantize with the trained scales."""
        simulation, scales = detach(model)
        static, onnx = self._static, to_onnx(model, context.example)
        plan = static.plan(onnx.graph())
        ranges = _with_rectified(plan.model, simulation.ends())
        missing = [name for name in static.watched(plan) if name not in ranges]
        if missing:
            ranges = static.ranges(static.observe(onnx, plan, context)) | ranges
        # in bytes, integers of few bits take the upper ones: the bias is stored in steps of scale_x · scale_w, which would be coarse otherwise
        spare = 2 ** ((7 if Static().narrow else 8) - self._bits)
        overrides = {layer.weights[0]: _override(plan.model, layer, scales[layer.module].numpy() / spare) for layer in plan.layers if layer.module in scales}
        made, names = static.quantized(static.plan(onnx.graph()), ranges, "pairs", overrides)
        result = static.pack(restore_names(made, names), plan, onnx)
        static.tell(result, plan, context)
        return result

    @property
    def _static(self) -> Static:
        return Static(layers=self.layers, skip=self.skip, batches=self.batches, method="mse", reduce_range="no")

    @property
    def _bits(self) -> int:
        """7 where the processor's sums would overflow with 8."""
        return min(self.bits, 7 if Static().narrow else 8)


class QatPart(TrainPart):
    """The task's loss, if labels count; the scales of activations train beside the model."""

    def __init__(self, labels: bool) -> None:
        self.labels = labels

    def open(self, model: nn.Module) -> None:
        self.modules["scales"] = _simulation(model).quantizers

    def parameter_groups(self, model: nn.Module) -> Iterator[dict[str, Any]]:
        """Scales don't decay."""
        weights = [each for quantizer in _simulation(model).weights.values() for each in quantizer.parameters()]
        yield {"params": [*self.modules.parameters(), *weights], "weight_decay": 0.0}

    def terms(self, step: Step) -> Iterable[Term]:
        if self.labels:
            yield Term.from_labels(step)


def _simulation(model: nn.Module) -> Simulation:
    return model.__dict__[ATTRIBUTE]


class _Place:
    """A QuantizeLinear of a graph: its scale, zero point and grid; those that share a scale have the same key."""

    def __init__(self, key: str, scale: Any, zero: Any) -> None:
        self.key, self.scale, self.zero = key, float(scale), int(zero)
        self.grid = Grid(8 * zero.dtype.itemsize, signed=zero.dtype.kind == "i")


def _places(quantized: ModelProto, names: Mapping[str, str]) -> dict[str, _Place]:
    """Where activations are quantized, by the tensor's name in the graph before."""
    from onnx import numpy_helper
    from onnxruntime.quantization.quant_utils import add_quant_input_suffix

    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    old = {form: name for name, new in names.items() for form in (new, add_quant_input_suffix(new))}  # outputs of the graph get the suffix
    found = [node for node in quantized.graph.node if node.op_type == "QuantizeLinear" and node.input[0] in old]
    return {old[node.input[0]]: _Place(node.input[1], held[node.input[1]], held[node.input[2]]) for node in found}


def _values(onnx: OnnxModel, tensors: list[str], item: Batch) -> dict[str, np.ndarray]:
    """Tensors inside a graph, on one batch."""
    from onnx import ValueInfoProto

    graph = onnx.graph()
    outputs = {each.name for each in graph.graph.output}
    graph.graph.output.extend(ValueInfoProto(name=name) for name in tensors if name not in outputs)
    found = open_session(graph.SerializeToString(), optimize=False).run(tensors, onnx.feeds(item)) if tensors else []
    return dict(zip(tensors, found, strict=True))


def _layers(model: nn.Module, onnx: OnnxModel, plan: Plan, norms: Mapping[str, nn.Module]) -> dict[str, nn.Module | None]:
    """The layers whose weights are simulated, each with the BatchNorm that the export folded into it."""
    from onnx import numpy_helper

    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in plan.model.graph.initializer}
    modules = dict(model.named_modules())
    found: dict[str, nn.Module | None] = {}
    for layer in plan.layers:
        module = modules.get(layer.module)
        weight = module._parameters.get("weight") if module is not None else None
        if layer.operator == "Gather" or weight is None or weight.numel() != layer.elements or layer.module in found:
            continue
        exported, norm = torch.from_numpy(_by_rows(held[layer.weights[0]], plan.model, layer).copy()), norms.get(layer.module)
        own = weight.detach().cpu().float()
        apart = norm is None or (exported - own * folding(norm, own)).abs().max() > (exported - own).abs().max()
        found[layer.module] = None if apart else norm
    return found


def _axis(model: ModelProto, layer: Layer) -> int:
    """The axis of the output channels in a layer's weight."""
    node = next(each for each in model.graph.node if each.name == layer.node)
    return 0 if layer.operator == "Conv" or any(item.name == "transB" and item.i for item in node.attribute) else 1


def _by_rows(weight: np.ndarray, model: ModelProto, layer: Layer) -> np.ndarray:
    return weight.T if _axis(model, layer) else weight


def _override(model: ModelProto, layer: Layer, scales: np.ndarray) -> list[dict[str, Any]]:
    """The scales of a weight as onnxruntime takes them."""
    from onnxruntime.quantization import QuantType

    axis, zero = _axis(model, layer), np.array(0, np.int8)
    return [{"axis": axis, "quant_type": QuantType.QInt8, "scale": np.array(scale, np.float32), "zero_point": zero} for scale in scales]


def _with_rectified(model: ModelProto, ranges: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """With the outputs of ReLUs whose inputs are quantized: onnxruntime takes the range of such an output for both."""
    found = dict(ranges)
    for node in model.graph.node:
        if node.op_type in ("Relu", "Clip") and node.input[0] in ranges:
            found.setdefault(node.output[0], ranges[node.input[0]])
    return found
