"""Ternary weights: -1, 0 or 1 each, times a scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from kdkit import Context, param
from kdkit_quantize.group_quantization import GroupCode
from kdkit_quantize.packing_stage import PackingStage
from kdkit_quantize.sign_codes import ternary_code


class Ternary(PackingStage):
    """Hold each weight as -1, 0 or 1, times a scale for each output: two bits a weight, packed in memory and on disk.

    0 where |w| ≤ Δ, and ±α elsewhere, with Δ = 0.7 · mean |w| and α = mean of the |w| above Δ (Li et al., "Ternary Weight Networks", 2016,
    arXiv:1605.04711). Activations stay in float. About half of the codes are zeros, so that `encode entropy` makes the file smaller still.
    """

    id: ClassVar = "quantize.ternary"
    known_as: ClassVar[tuple[str, ...]] = ("TWN", "ternarization")
    sample_options: ClassVar = "--skip head"

    group: int | None = param(None, "weights that share a scale; default: all weights of an output", ge=8)

    def layer_widths(self, model: nn.Module, chosen: Mapping[str, nn.Module], context: Context) -> dict[str, int]:
        return dict.fromkeys(chosen, 2)

    def code(self, weight: Tensor, bits: int, moment: Tensor | None = None) -> GroupCode:
        return ternary_code(weight, min(self.group or weight.shape[1], weight.shape[1]))
