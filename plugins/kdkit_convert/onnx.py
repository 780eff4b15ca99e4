"""ONNX: the model as a graph that onnxruntime runs, in float32."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from kdkit import Context, Needs, Stage, Trait, param
from kdkit.backends.onnx import to_onnx


class Onnx(Stage):
    """Export to an ONNX graph that onnxruntime runs in float32.

    The version is called as before, with batches and sequences of any length; it can be quantized, and no longer trained
    or pruned. Packed layers become what they compute, in float32. The graph is checked against torch on several batch sizes.
    """

    id: ClassVar = "convert.onnx"
    bridge: ClassVar = True
    keeps_values: ClassVar = True
    needs: ClassVar = Needs(example=True, packages=("onnx", "onnxruntime", "onnxscript"))
    requires: ClassVar = frozenset({Trait.FLOAT_WEIGHTS})
    forbids: ClassVar = frozenset({Trait.MASKS_PENDING, Trait.FAKE_QUANT, Trait.ADAPTERS_ATTACHED, Trait.ONNX})
    adds: ClassVar = frozenset({Trait.ONNX})
    removes: ClassVar = frozenset({Trait.TRAINABLE, Trait.FREE_STRUCTURE, Trait.PACKED_WEIGHTS})

    attention: Literal["eager", "keep"] = param("eager", "of HF transformers: eager is faster once quantized; keep exports what the model uses now", main=True)
    opset: int | None = param(None, "ONNX operator set; default: the exporter's own", ge=18, advanced=True)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Export, and check what was exported."""
        made = to_onnx(model, context.example, self.attention, self.opset, lambda done, phase: context.progress(done, 1, phase))
        if made.signature.note:
            context.note(made.signature.note)
        return made
