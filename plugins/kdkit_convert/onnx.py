"""ONNX: the model as a graph that onnxruntime runs, in float32."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from kdkit import Context, Needs, Stage, Trait, param
from kdkit.backends.onnxruntime import to_onnx


class Onnx(Stage):
    """Export to an ONNX graph that onnxruntime runs in float32.

    The version is called as before, with batches and sequences of any length; it can be quantized, and no longer trained
    or pruned. The graph is checked against torch on several batch sizes.
    """

    id: ClassVar = "convert.onnx"
    bridge: ClassVar = True
    needs: ClassVar = Needs(example=True, packages=("onnx", "onnxruntime", "onnxscript"))
    requires: ClassVar = frozenset({Trait.FLOAT_WEIGHTS})
    forbids: ClassVar = frozenset({Trait.MASKS_PENDING, Trait.FAKE_QUANT, Trait.ADAPTERS_ATTACHED, Trait.ONNX})
    adds: ClassVar = frozenset({Trait.ONNX})
    removes: ClassVar = frozenset({Trait.TRAINABLE, Trait.FREE_STRUCTURE})

    attention: Literal["eager", "keep"] = param("eager", "of HF transformers: eager is faster once quantized; keep exports what the model uses now")
    opset: int | None = param(None, "ONNX operator set; the exporter's own when not said", ge=18, advanced=True)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Export, and check what was exported."""
        context.check_cancelled()
        return to_onnx(model, context.example, self.attention, self.opset)
