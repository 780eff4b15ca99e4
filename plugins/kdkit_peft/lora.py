"""LoRA: a weight learns by a product of two thin ones beside it.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv:2106.09685).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from kdkit.context import Context
from kdkit.contract import Needs, TrainStage, Trait, param
from kdkit.patterns import match
from kdkit.training import Step, Term, TrainPart
from kdkit_peft.targets import adaptable_kinds, find_targets

FROZEN = "frozen_before_adapters"
"""The model's attribute that names the parameters which were frozen before adapters came; absent where none was."""


class Lora(TrainStage):
    """Train low-rank adapters beside weights that hold still.

    A layer gives W·x + (alpha / rank)·B·A·x, where A is (rank, in) and B is (out, rank). B begins as zero, so the model
    begins as it was. Only adapters train, and what `also_train` names; W, and the statistics of norms, stay bit for bit.
    The adapters stay attached: `peft merge` adds them to the weights. Works on HF models and any other nn.Module.
    """

    id: ClassVar[str] = "peft.lora"
    needs: ClassVar[Needs] = Needs(example=True, packages=("peft",))
    requires: ClassVar[Iterable[str]] = {Trait.TRAINABLE, Trait.FLOAT_WEIGHTS}
    forbids: ClassVar[Iterable[str]] = {Trait.ADAPTERS_ATTACHED, Trait.MASKS_PENDING, Trait.FAKE_QUANT}
    adds: ClassVar[Iterable[str]] = {Trait.ADAPTERS_ATTACHED}
    removes: ClassVar[Iterable[str]] = {Trait.FREE_STRUCTURE}

    rank: int = param(8, "of the adapters", ge=1, search=(2, 64))
    alpha: float = param(16.0, "the adapters' output is multiplied by alpha / rank", gt=0)
    dropout: float = param(0.0, "of the adapters' input, in training", ge=0, lt=1)
    targets: tuple[str, ...] = param((), "layers to adapt: linear, convolution or embedding; all linear ones but the output head when not said", refers="layers")
    skip: tuple[str, ...] = param((), "layers to leave alone", refers="layers")
    also_train: tuple[str, ...] = param((), "layers to train whole beside the adapters, such as a new classifier", refers="layers")
    rslora: bool = param(False, "multiply by alpha / √rank instead, which keeps large ranks learning (Kalajdzievski, 2023)")
    dora: bool = param(False, "train the weights' magnitudes apart from their directions (Liu et al., 2024)")
    init: Literal["kaiming", "gaussian"] = param("kaiming", "how A begins", advanced=True)
    train: bool = param(True, "train the adapters; --no-train only attaches them")
    loss: float = param(1.0, "weight of the task's loss; 0 leaves it to the other stages of a together group, and needs no labels", ge=0, advanced=True)

    def needed(self) -> Needs:
        return self.needs | Needs(train=self.train, labels=self.train and self.loss > 0)

    def check(self, model: nn.Module, context: Context) -> Iterator[str]:
        match(model, self.targets, adaptable_kinds())
        match(model, (*self.skip, *self.also_train))
        yield from super().check(model, context)

    def learner(self, model: nn.Module, context: Context) -> nn.Module:
        """The model with adapters; all else is frozen."""
        trained = match(model, self.also_train)
        targets = find_targets(model, self.targets, (*self.skip, *self.also_train), context)
        frozen = tuple(name for name, weight in model.named_parameters() if not weight.requires_grad)
        _inject(model, targets, self)
        for module in trained.values():
            module.requires_grad_(True)
        if frozen:
            setattr(model, FROZEN, frozen)
        counts = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
        total, learning = sum(count for count, _ in counts), sum(count for count, flag in counts if flag)
        context.note(f"{len(targets)} adapters of rank {self.rank}: {learning:,} of {total:,} parameters train ({learning / total:.2%})")
        return model

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return AdapterPart(self.loss if self.train else 0.0)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        return context.fit(model, [self]) if self.train else self.learner(model, context)


class AdapterPart(TrainPart):
    """The task's loss; norms that do not train keep their running statistics."""

    def __init__(self, weight: float = 1.0):
        self.weight = weight

    def open(self, model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, _NormBase) and not any(weight.requires_grad for weight in module.parameters()):
                module.eval()

    def terms(self, step: Step) -> Iterable[Term]:
        if self.weight:
            yield Term.of_labels(step, self.weight)


def _inject(model: nn.Module, targets: Mapping[str, nn.Module], lora: Lora) -> None:
    """Put peft's layers in the places of `targets`; no wrapper around the model, so it is called as before."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # only ever divided
        lora_dropout=lora.dropout,
        target_modules="|".join(map(re.escape, targets)),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        init_lora_weights="gaussian" if lora.init == "gaussian" else True,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # peft sees for itself which layers are transposed
        inject_adapter_in_model(config, model)
    for name, layer in targets.items():
        model.get_submodule(name).train(layer.training)
