"""OFT: rotations of what layers receive, on frozen weights.

Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", 2023 (arXiv:2306.07280).
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from kdkit import param
from kdkit_peft.adapter_stage import AdapterStage


class Oft(AdapterStage):
    """Train a rotation of the inputs of each linear layer, on frozen weights.

    A layer computes W·(R·x) + b, where R consists of orthogonal blocks of `block_size`: angles between the neurons of a layer stay. R starts
    as the identity, so the outputs start unchanged. The rotations stay attached: `peft merge` multiplies the weights by them.
    """

    id: ClassVar[str] = "peft.oft"
    known_as: ClassVar[tuple[str, ...]] = ("orthogonal fine-tuning",)

    block_size: int = param(32, "inputs that a block rotates; the number of a layer's inputs must be a multiple of it", ge=2, search=(4, 64), main=True)
    dropout: float = param(0.0, "share of the blocks that are the identity, in training", ge=0, lt=1)

    def make_config(self, pattern: str, model: nn.Module | None = None) -> Any:
        from peft import OFTConfig

        return OFTConfig(target_modules=pattern, r=0, oft_block_size=self.block_size, module_dropout=self.dropout)

    def kinds(self) -> tuple[Any, ...]:
        return (nn.Linear,)

    def obstacle(self, layer: nn.Module) -> str:
        inputs = layer.get_parameter("weight").shape[1]
        return f"its {inputs} inputs are no multiple of --block-size {self.block_size}" if inputs % self.block_size else super().obstacle(layer)

    def describe(self, count: int) -> str:
        return f"{count} rotations in blocks of {self.block_size}"
