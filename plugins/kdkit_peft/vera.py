"""VeRA: low-rank adapters whose matrices are random and shared, and whose vectors train.

Kopiczko, Blankevoort, Asano, "VeRA: Vector-based Random Matrix Adaptation", 2024 (arXiv:2310.11454).
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from kdkit import param
from kdkit.models import linear_kinds
from kdkit_peft.adapter_stage import AdapterStage


class Vera(AdapterStage):
    """Train two vectors for each layer, between random matrices that all layers share, on frozen weights.

    A layer computes W·x + b ⊙ (B·(d ⊙ (A·x))): A (rank, in) and B (out, rank) are random, frozen and shared, d (rank,) and b (out,) train. b
    starts at 0, so the outputs start unchanged. Fewer parameters than LoRA at larger ranks: rank + out for each layer. The adapters stay
    attached: `peft merge` adds them to the weights.
    """

    id: ClassVar[str] = "peft.vera"
    known_as: ClassVar[tuple[str, ...]] = ("vector-based random matrix adaptation",)

    rank: int = param(256, "of the shared matrices", ge=1, search=(16, 1024), main=True)
    dropout: float = param(0.0, "of the adapters' input, in training", ge=0, lt=1)
    start: float = param(0.1, "value that d starts with", gt=0, advanced=True)

    def make_config(self, pattern: str, model: nn.Module | None = None) -> Any:
        from peft import VeraConfig

        return VeraConfig(target_modules=pattern, r=self.rank, vera_dropout=self.dropout, d_initial=self.start)

    def kinds(self) -> tuple[Any, ...]:
        return linear_kinds()

    def describe(self, count: int) -> str:
        return f"{count} pairs of vectors between shared matrices of rank {self.rank}"
