"""IA3: vectors that scale what layers give out, on frozen weights.

Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", 2022 (arXiv:2205.05638).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import nn

from kdkit import Context, param
from kdkit.models import linear_kinds, select_layers
from kdkit_peft.adapter_stage import AdapterStage


class Ia3(AdapterStage):
    """Train one vector for each layer, which scales its outputs, on frozen weights.

    A layer computes l ⊙ (W·x + b), with l of (out,); those of `scale_inputs` compute W·(l ⊙ x) + b, with l of (in,). l starts at 1, so the
    outputs start unchanged. The paper scales the keys and values of attention, and the inputs of the second feed-forward layer; for BERT:
    `--targets key value *.output.dense --skip *.attention.output.dense --scale-inputs *.output.dense`. The vectors stay attached:
    `peft merge` multiplies the weights by them.
    """

    id: ClassVar[str] = "peft.ia3"
    known_as: ClassVar[tuple[str, ...]] = ("(IA)3",)

    scale_inputs: tuple[str, ...] = param((), "layers among the targets whose inputs are scaled instead, such as the second feed-forward layers", names="layers")

    def make_config(self, pattern: str, model: nn.Module | None = None) -> Any:
        from peft import IA3Config

        inputs = select_layers(model, self.scale_inputs, self.kinds()) if model is not None else {}
        return IA3Config(target_modules=pattern, feedforward_modules="|".join(map(re.escape, inputs)) or [])

    def kinds(self) -> tuple[Any, ...]:
        return (*linear_kinds(), nn.Conv2d, nn.Conv3d)

    def check(self, model: nn.Module, context: Context) -> Iterator[str]:
        select_layers(model, self.scale_inputs, self.kinds())
        yield from super().check(model, context)

    def describe(self, count: int) -> str:
        return f"{count} {'vectors' if count > 1 else 'vector'}"
