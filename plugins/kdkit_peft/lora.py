"""LoRA: low-rank adapters, added to frozen weights.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv:2106.09685).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

from torch import nn

from kdkit import Context, KdError, Needs, Step, Term, TrainPart, TrainStage, Trait, param
from kdkit.models import select_layers
from kdkit.training import FrozenLayers, fit
from kdkit_peft.adapters import attach_adapters
from kdkit_peft.low_rank import parametrize_weights
from kdkit_peft.targets import adaptable_kinds, find_targets

FROZEN = "frozen_before_adapters"
"""The model's attribute with the names of parameters that were frozen before the adapters were attached; absent if there were none."""


class Lora(TrainStage):
    """Train low-rank adapters on frozen weights.

    A layer computes W·x + (alpha / rank)·B·A·x, where A is (rank, in) and B is (out, rank). B starts at zero, so the outputs
    start unchanged. Only the adapters and the layers of `also_train` train; W and the statistics of norms stay bit for bit.
    The adapters stay attached: `peft merge` adds them to the weights. Works on HF models and any other nn.Module.
    """

    id: ClassVar[str] = "peft.lora"
    known_as: ClassVar[tuple[str, ...]] = ("low-rank adaptation",)
    needs: ClassVar[Needs] = Needs(example=True, packages=("peft",))
    requires: ClassVar[Iterable[str]] = {Trait.TRAINABLE, Trait.FLOAT_WEIGHTS}
    forbids: ClassVar[Iterable[str]] = {Trait.ADAPTERS_ATTACHED, Trait.FAKE_QUANT}
    adds: ClassVar[Iterable[str]] = {Trait.ADAPTERS_ATTACHED}
    removes: ClassVar[Iterable[str]] = {Trait.FREE_STRUCTURE}

    rank: int = param(8, "of the adapters", ge=1, search=(2, 64), main=True)
    alpha: float = param(16.0, "the adapters' output is multiplied by alpha / rank", gt=0)
    dropout: float = param(0.0, "of the adapters' input, in training", ge=0, lt=1)
    targets: tuple[str, ...] = param((), "layers to adapt: linear, convolution or embedding; default: all linear layers except the output head", names="layers")
    skip: tuple[str, ...] = param((), "layers without adapters", names="layers")
    also_train: tuple[str, ...] = param((), "layers to train fully in addition to the adapters, such as a new classifier", names="layers")
    rslora: bool = param(False, "scale by alpha / √rank, which trains large ranks better (Kalajdzievski, 2023)")
    dora: bool = param(False, "train magnitudes and directions of the weights separately (Liu et al., 2024)")
    init: Literal["kaiming", "gaussian"] = param("kaiming", "initialization of A", advanced=True)
    train: bool = param(True, "train the adapters; --no-train only attaches them")
    loss: float = param(1.0, "weight of the task's loss; 0 trains for the other stages of a together group only, and needs no labels", ge=0, advanced=True)

    def required_inputs(self) -> Needs:
        return self.needs | Needs(train=self.train, labels=self.train and self.loss > 0)

    def check(self, model: nn.Module, context: Context) -> Iterator[str]:
        try:
            select_layers(model, self.targets, adaptable_kinds())
        except KdError as error:
            error.with_hints("%kd tune finetune --layers PATTERN trains layers of any kind whole")
            raise
        select_layers(model, (*self.skip, *self.also_train))
        yield from super().check(model, context)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Attach adapters, and freeze all other weights."""
        trained = select_layers(model, self.also_train)
        targets = find_targets(model, self.targets, (*self.skip, *self.also_train), self._peft_options(), context)
        frozen = tuple(name for name, weight in model.named_parameters() if not weight.requires_grad)
        model.requires_grad_(False)
        attach_adapters(model, targets.called, self._peft_options())
        adapters = len(targets.called) + parametrize_weights(targets.read.values(), self._peft_options())
        for module in trained.values():
            module.requires_grad_(True)
        if frozen:
            setattr(model, FROZEN, frozen)
        counts = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
        total, learning = sum(count for count, _ in counts), sum(count for count, flag in counts if flag)
        context.note(f"{adapters} adapters of rank {self.rank}: {learning:,} of {total:,} parameters train ({learning / total:.2%})")
        return model

    def _peft_options(self) -> dict[str, Any]:
        """The options of `peft.LoraConfig`, without the layers."""
        return {
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "use_rslora": self.rslora,
            "use_dora": self.dora,
            "init_lora_weights": "gaussian" if self.init == "gaussian" else True,
        }

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return AdapterPart(self.loss if self.train else 0.0, self.also_train)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        return fit(model, [self], context) if self.train else self.prepare(model, context)


class AdapterPart(TrainPart):
    """The task's loss; all but the adapters and the layers of `also_train` stay bit for bit, their running statistics too."""

    def __init__(self, weight: float = 1.0, also_train: tuple[str, ...] = ()):
        self.weight, self.also_train = weight, also_train
        self.frozen: FrozenLayers | None = None

    def open(self, model: nn.Module) -> None:
        self.frozen = FrozenLayers(model, [*select_layers(model, self.also_train).values(), *_with_trainable_weights(model)])

    def close(self, model: nn.Module) -> None:
        if self.frozen:
            self.frozen.restore()

    def terms(self, step: Step) -> Iterable[Term]:
        if self.weight:
            yield Term.from_labels(step, self.weight)


def _with_trainable_weights(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that hold a trainable weight themselves: once adapters are attached, these and the layers of `also_train`."""
    return (module for module in model.modules() if any(weight is not None and weight.requires_grad for weight in module._parameters.values()))
