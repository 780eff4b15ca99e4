"""Weight sharing: the weights of a layer take few different values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from kdkit import Context, Trait, param
from kdkit_quantize.encoding.shared_weight import SharedWeight
from kdkit_quantize.packing_stage import PackingStage


class Share(PackingStage):
    """Let the weights of a layer share a few values, found by k-means; the file holds the values, and a short index for each weight.

    Han, Mao, Dally, "Deep Compression", 2016 (arXiv:1510.00149). The values train afterwards: `tune finetune` and `distill soft` move each by the
    sum of the gradients of its weights. Zeros stay zero, so prune first (`prune weights`); `encode entropy` then makes the file smaller still.
    """

    id: ClassVar = "encode.share"
    known_as: ClassVar[tuple[str, ...]] = ("weight sharing", "k-means quantization", "Deep Compression")
    removes: ClassVar = frozenset({Trait.FLOAT_WEIGHTS, Trait.FREE_STRUCTURE})
    sample_options: ClassVar = "--bits 4"

    bits: int = param(5, "of an index: a layer has up to 2^bits values", ge=1, le=8, search=(2, 8), main=True)

    def layer_widths(self, model: nn.Module, chosen: Mapping[str, nn.Module], context: Context) -> dict[str, int]:
        return dict.fromkeys(chosen, self.bits)

    def packed_weight(self, weight: Tensor, bits: int, moment: Tensor | None = None) -> nn.Module:
        return SharedWeight(weight, bits)
