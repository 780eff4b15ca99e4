"""Binary weights: one bit each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from kdkit import Context, param
from kdkit_quantize.group_quantization import GroupCode
from kdkit_quantize.packing_stage import PackingStage
from kdkit_quantize.sign_codes import binary_code


class Binary(PackingStage):
    """Hold each weight as its sign, times a scale for each output: one bit a weight, packed in memory and on disk.

    w ≈ α · sign(w) with α = mean |w|, the nearest such weights (Rastegari et al., "XNOR-Net", 2016, arXiv:1603.05279). Activations stay in
    float. Most models lose much accuracy: leave the first and last layer out (`--skip`), and compare with `quantize weights --bits 2`.
    """

    id: ClassVar = "quantize.binary"
    known_as: ClassVar[tuple[str, ...]] = ("binarization", "BWN", "XNOR-Net")
    sample_options: ClassVar = "--skip head"

    group: int | None = param(None, "weights that share a scale; default: all weights of an output", ge=8)

    def layer_widths(self, model: nn.Module, chosen: Mapping[str, nn.Module], context: Context) -> dict[str, int]:
        return dict.fromkeys(chosen, 1)

    def code(self, weight: Tensor, bits: int, moment: Tensor | None = None) -> GroupCode:
        return binary_code(weight, min(self.group or weight.shape[1], weight.shape[1]))
