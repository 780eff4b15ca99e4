"""ONNX: the model as a graph that onnxruntime runs, in float32."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from kdkit import Context, Needs, Stage, Trait, param
from kdkit.backends.onnx import PACKED_OPERATORS, OnnxModel, module_of, to_onnx


class Onnx(Stage):
    """Export to an ONNX graph that onnxruntime runs in float32.

    The version is called as before, with batches and sequences of any length; it can be quantized, and no longer trained
    or pruned. The graph is checked against torch on several batch sizes. Linear layers and embeddings that quantize weights packed in 4 or 8
    bits stay packed, as onnxruntime's MatMulNBits and GatherBlockQuantized; other packed layers become what they compute, in float32.
    """

    id: ClassVar = "convert.onnx"
    bridge: ClassVar = True
    keeps_values: ClassVar = True
    needs: ClassVar = Needs(example=True, packages=("onnx", "onnxruntime", "onnxscript"))
    forbids: ClassVar = frozenset({Trait.MASKS_PENDING, Trait.FAKE_QUANT, Trait.ADAPTERS_ATTACHED, Trait.ONNX})
    adds: ClassVar = frozenset({Trait.ONNX, Trait.FLOAT_WEIGHTS})
    removes: ClassVar = frozenset({Trait.TRAINABLE, Trait.FREE_STRUCTURE, Trait.PACKED_WEIGHTS})

    attention: Literal["eager", "keep"] = param("eager", "of HF transformers: eager is faster once quantized; keep exports what the model uses now", main=True)
    opset: int | None = param(None, "ONNX operator set; default: the exporter's own", ge=18, advanced=True)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Export, and check what was exported."""
        made = to_onnx(model, context.example, self.attention, self.opset, lambda done, phase: context.progress(done, 1, phase))
        if made.signature.note:
            context.note(made.signature.note)
        _tell_packed(model, made, context)
        return made


def _tell_packed(model: nn.Module, made: OnnxModel, context: Context) -> None:
    """Note which packed layers stay packed, and which became float."""
    packed = [name for name, module in model.named_modules() if hasattr(module, "kdkit_exported")]
    if not packed:
        return
    kept = {module_of(node) for node in made.graph().graph.node if node.op_type in PACKED_OPERATORS}
    context.note(f"{len(kept)} of {len(packed)} packed layers stay packed in onnxruntime")
    if became := [name or "the model" for name in packed if name not in kept]:
        names = f"{', '.join(became[:6])}{', ...' if len(became) > 6 else ''}"
        context.note(f"in float32: {names}; onnxruntime has packed operators for linear layers and embeddings, in groups of 16, 32, 64, ... and with integer zero points")
