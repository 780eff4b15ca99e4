"""Weight-only quantization: integers of 8, 4, 3 or 2 bits in groups; activations stay in float."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from kdkit import param
from kdkit_quantize.group_quantization import METHODS, GroupCode
from kdkit_quantize.packing_stage import PackingStage


class Weights(PackingStage):
    """Hold weights in 8, 4, 3 or 2 bits, packed in memory and on disk; activations stay in float.

    A row of weights is cut into groups, each with a scale and a zero point: w ≈ (code - zero) · scale. `rtn` rounds to the nearest level.
    `hqq` fits the zero points to a sparse error (Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023).
    Neither needs data. Biases, norms and recurrent layers stay in float. Tied weights stay tied.
    """

    id: ClassVar = "quantize.weights"
    known_as: ClassVar[tuple[str, ...]] = ("weight-only quantization", "HQQ", "RTN")
    sample_options: ClassVar = "--bits 4 --method hqq"

    bits: Literal[8, 4, 3, 2] = param(8, "of a weight", search=(8, 4, 3, 2), main=True)
    group: int = param(64, "weights that share a scale and a zero point; a row with fewer weights is one group", ge=8, le=1024)
    method: Literal["rtn", "hqq"] = param("rtn", "how the codes are chosen", search=("rtn", "hqq"), main=True)

    def bits_of(self, name: str, model: nn.Module) -> int:
        return self.bits

    def code(self, weight: Tensor, bits: int) -> GroupCode:
        return METHODS[self.method](weight, bits, min(self.group, weight.shape[1]))
