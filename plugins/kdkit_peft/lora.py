"""LoRA: low-rank adapters, added to frozen weights.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv:2106.09685).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from torch import nn

from kdkit import Trait, param
from kdkit_peft.adapter_stage import AdapterStage
from kdkit_peft.adapters import CONVOLUTIONS
from kdkit_peft.low_rank import obstacle, parametrize_weights

OF_THE_WEIGHT = ("pissa", "olora")
"""Initializations that take A and B out of the weight."""


class Lora(AdapterStage):
    """Train low-rank adapters on frozen weights.

    A layer computes W·x + (alpha / rank)·B·A·x, where A is (rank, in) and B is (out, rank). The outputs start unchanged. Only the adapters
    and the layers of `also_train` train; W and the statistics of norms stay bit for bit. The adapters stay attached: `peft merge` adds them
    to the weights. Works on HF models and any other nn.Module, also on linear layers that `quantize weights` packed (Dettmers et al., "QLoRA",
    2023, arXiv:2305.14314).

    `init` pissa takes the first singular vectors of W for A and B (Meng et al., 2024, arXiv:2404.02948), olora its QR decomposition
    (Büyükakyüz, 2024, arXiv:2406.01775); both train faster, and keep only the rest of W in the layer. Linear layers only.
    """

    id: ClassVar[str] = "peft.lora"
    known_as: ClassVar[tuple[str, ...]] = ("low-rank adaptation", "rsLoRA", "DoRA", "PiSSA", "OLoRA")

    requires: ClassVar[Iterable[str]] = frozenset()
    forbids: ClassVar[Iterable[str]] = {Trait.ADAPTERS_ATTACHED, Trait.FAKE_QUANT, Trait.ONNX}
    adds: ClassVar[Iterable[str]] = {Trait.ADAPTERS_ATTACHED, Trait.TRAINABLE, Trait.FLOAT_WEIGHTS}

    rank: int = param(8, "of the adapters", ge=1, search=(2, 64), main=True)
    alpha: float = param(16.0, "the adapters' output is multiplied by alpha / rank", gt=0)
    dropout: float = param(0.0, "of the adapters' input, in training", ge=0, lt=1)
    rslora: bool = param(False, "scale by alpha / √rank, which trains large ranks better (Kalajdzievski, 2023)")
    dora: bool = param(False, "train magnitudes and directions of the weights separately (Liu et al., 2024)")
    init: Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora"] = param(
        "kaiming", "A and B: A random and B zero (kaiming, gaussian), orthogonal, or parts of the weight (pissa, olora)"
    )

    def make_config(self, pattern: str, model: nn.Module | None = None) -> Any:
        from peft import LoraConfig

        tried = {} if model is not None else {"init_lora_weights": True}  # an initialization may change the weight of the layer
        return LoraConfig(target_modules=pattern, **self._peft_options() | tried)

    def _peft_options(self) -> dict[str, Any]:
        """The options of `peft.LoraConfig`, without the layers."""
        return {
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "use_rslora": self.rslora,
            "use_dora": self.dora,
            "init_lora_weights": True if self.init == "kaiming" else self.init,
        }

    def adapts_packed(self) -> bool:
        return self.init in ("kaiming", "gaussian") and not self.dora

    def obstacle(self, layer: nn.Module) -> str:
        if found := super().obstacle(layer):
            return found
        if self.init in (*OF_THE_WEIGHT, "orthogonal") and not isinstance(layer, nn.Linear):
            return f"--init {self.init} works on linear layers only"
        if self.init in OF_THE_WEIGHT and self.rank > (most := min(layer.get_parameter("weight").shape)):
            return f"--init {self.init} needs a rank of at most {most} here"
        if isinstance(layer, CONVOLUTIONS) and layer.padding_mode != "zeros" and self.dora and self.dropout:
            return f"with --dora and --dropout, peft pads with zeros in training, and the layer pads with {layer.padding_mode}"
        return ""

    def obstacle_of_read(self, layer: nn.Module) -> str:
        return obstacle(layer, self._peft_options())

    def adapt_read(self, layers: Iterable[nn.Module]) -> int:
        return parametrize_weights(layers, self._peft_options())

    def describe(self, count: int) -> str:
        return f"{count} adapters of rank {self.rank}"
