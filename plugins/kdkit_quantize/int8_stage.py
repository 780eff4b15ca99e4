"""What quantize dynamic and quantize static share: their options, their plan, and what they say about it."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import nn

from kdkit import Context, Forecast, KdError, Needs, Stage, Trait, param
from kdkit.backends.onnx import OnnxModel, numel, packed_of, shorten_names, tidy, untie_transposed, weights_of
from kdkit_quantize.hardware import fastest_layout, has_dot_product
from kdkit_quantize.layers import Layer, chosen, layers_of, multiplies_activations

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime.quantization import QuantType


FLOAT_ONLY = ("GRU", "RNN")
"""Operators with weights that onnxruntime can't run in 8 bits."""


@dataclass(frozen=True)
class Plan:
    """Which layers get 8-bit weights."""

    model: ModelProto
    layers: list[Layer]
    left: list[Layer]

    @property
    def attention(self) -> bool:
        """Whether it is a transformer, where products of two activations stay in float."""
        return multiplies_activations(self.model)

    @property
    def elements(self) -> int:
        """Weights that will be held in 8 bits."""
        return sum({layer.weights: layer.elements for layer in self.layers}.values())


class Int8Stage(Stage):
    """An 8-bit onnxruntime version."""

    needs: ClassVar = Needs(packages=("onnx", "onnxruntime"))
    requires: ClassVar = frozenset({Trait.ONNX, Trait.FLOAT_WEIGHTS})
    adds: ClassVar = frozenset({Trait.PACKED_WEIGHTS})
    removes: ClassVar = frozenset({Trait.FLOAT_WEIGHTS})

    layers: tuple[str, ...] = param((), "only the layers of these modules, by name or pattern; default: all", names="layers")
    skip: tuple[str, ...] = param((), "modules whose layers stay in float: names or patterns", names="layers")
    operators: tuple[str, ...] = param((), "only these ONNX operators, such as Conv MatMul; default: chosen by the kind of model")
    embeddings: bool = param(True, "hold embedding tables in 8 bits as well: their share of the bytes is large, of the time none")
    per_channel: bool = param(True, "a scale for every output channel of a weight; one for the whole weight loses much accuracy", main=True)
    weights: Literal["symmetric", "asymmetric"] = param("symmetric", "symmetric weights have zero point 0", advanced=True)
    layout: Literal["auto", "u8s8", "u8u8", "s8s8"] = param("auto", "types of activations and weights; auto takes what this machine is fastest at", advanced=True)
    reduce_range: Literal["auto", "yes", "no"] = param("auto", "weights within 7 bits; auto: where sums could overflow (x86 without VNNI)", advanced=True)

    offered: ClassVar[tuple[str, ...]] = ()
    """Operators that `operators` can name."""

    def check(self, model: nn.Module, context: Context) -> Iterable[str]:
        """Operators that this technique doesn't know."""
        for name in self.operators:
            if name not in self.offered:
                yield f"{self.id.replace('.', ' ')}: --operators {name}: it quantizes {', '.join(self.offered)}"

    def usual(self, model: ModelProto) -> tuple[str, ...]:
        """The operators to quantize in a graph, when the user names none."""
        raise NotImplementedError

    def chosen_operators(self, model: ModelProto) -> tuple[str, ...]:
        """The operators to quantize in a graph."""
        operators = self.operators or self.usual(model)
        return tuple(name for name in operators if name != "Gather" or self.embeddings)

    def plan(self, model: ModelProto) -> Plan:
        """What to quantize of a graph, which is prepared for it.

        Raises:
            KdError: nothing, or a pattern that means no layer.
        """
        untie_transposed(model.graph)
        del model.graph.value_info[:]  # stale shapes make onnxruntime's quantizer fail
        operators, every = self.chosen_operators(model), layers_of(model)
        among = chosen([layer for layer in every if layer.operator in operators], self.layers, self.skip)
        left = [layer for layer in every if layer not in among]
        plan = Plan(model, among, left)
        if not among:
            raise self.nothing(plan)
        return plan

    def nothing(self, plan: Plan) -> KdError:
        """The error for a plan without layers."""
        kinds = sorted({layer.operator for layer in plan.left})
        hint = "onnxruntime has no 8-bit form of these" if kinds and set(kinds) <= set(FLOAT_ONLY) else "see --layers, --skip, --operators and --no-embeddings"
        return KdError(f"{self.id.replace('.', ' ')} has nothing to quantize; layers with weights in this model: {', '.join(kinds) or 'none'}", hint)

    @property
    def narrow(self) -> bool:
        """Whether weights of 8 bits stay within 7."""
        if self.bits[1] > 8:
            return False
        return not has_dot_product() if self.reduce_range == "auto" else self.reduce_range == "yes"

    def types(self) -> tuple[QuantType, QuantType]:
        """Of activations and of weights."""
        from onnxruntime.quantization import QuantType

        each = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8, "u16": QuantType.QUInt16, "s16": QuantType.QInt16}
        activations, weights = self._type_names()
        return each[activations], each[weights]

    @property
    def bits(self) -> tuple[int, int]:
        """Of activations and of weights."""
        activations, weights = self._type_names()
        return int(activations[1:]), int(weights[1:])

    def _type_names(self) -> tuple[str, str]:
        layout = fastest_layout() if self.layout == "auto" else self.layout
        activations, weights = re.findall(r"[us]\d+", layout)
        return activations, weights

    def forecast(self, model: nn.Module, context: Context) -> Forecast:
        """The size, from the bytes that a weight will take; no calibration."""
        if not isinstance(model, OnnxModel):
            return Forecast(model)
        plan = self.plan(model.graph())
        added = self.added_bytes(plan)
        shorten_names(plan.model.graph)
        untied = OnnxModel(plan.model.SerializeToString(), model.signature)
        return Forecast(untied, size_bytes=plan.model.ByteSize() - (4 - self.bits[1] // 8) * plan.elements + added)

    def added_bytes(self, plan: Plan) -> int:
        """About how many bytes scales and zero points take."""
        return 5 * self.channels(plan)

    def channels(self, plan: Plan) -> int:
        """Scales of all weights."""
        held = {tensor.name: tensor for tensor in plan.model.graph.initializer}
        return sum(min(held[name].dims) for layer in plan.layers for name in layer.weights) if self.per_channel else 0

    def pack(self, quantized: ModelProto, plan: Plan, source: OnnxModel, without: tuple[str, ...] = ()) -> OnnxModel:
        """The quantized graph as a model, tidied.

        Raises:
            KdError: nothing came out quantized.
        """
        tidy(quantized)
        shorten_names(quantized.graph)
        if not packed_of(quantized):
            raise self.nothing(plan)
        return OnnxModel(quantized.SerializeToString(), source.signature, packed=True, without=without)

    def tell(self, made: OnnxModel, plan: Plan, context: Context) -> None:
        """Note what is held in 8 bits, and what is not."""
        graph = made.graph()
        share = sum(map(numel, packed_of(graph))) / sum(map(numel, weights_of(graph)))
        context.note(f"{share:.1%} of the weights in {self.bits[1]} bits: {len(plan.layers)} of {len(plan.layers) + len(plan.left)} layers")
        if plan.left:
            names = [f"{layer.module} ({layer.operator})" if layer.operator in FLOAT_ONLY else layer.module for layer in plan.left]
            context.note(f"in float: {', '.join(names[:6])}{f' and {len(names) - 6} more' if len(names) > 6 else ''}")
        if without := sorted({layer.operator for layer in plan.left if layer.operator in FLOAT_ONLY}):
            context.note(f"onnxruntime has no 8-bit {' or '.join(without)}")
        if self.narrow:
            context.note("weights within 7 bits" + (", since this processor has no VNNI" if self.reduce_range == "auto" else ""))


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Undo what onnxruntime's quantizer does to the process: it logs to the root logger and gives it a handler, and its import extends `sys.path`."""
    disabled, handlers, path = logging.root.manager.disable, list(logging.root.handlers), list(sys.path)
    logging.disable(max(disabled, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(disabled)
        logging.root.handlers[:], sys.path[:] = handlers, path
