"""Stages that train peft's adapters on frozen weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, ClassVar

from torch import nn

from kdkit import Context, KdError, Needs, Step, Term, TrainPart, TrainStage, Trait, param
from kdkit.models import select_layers
from kdkit.training import FrozenLayers, fit
from kdkit_peft.adapters import CONVOLUTIONS, attach_adapters
from kdkit_peft.low_rank import matrices_of
from kdkit_peft.targets import adaptable_kinds, find_targets

FROZEN = "frozen_before_adapters"
"""The model's attribute with the names of parameters that were frozen before the adapters were attached; absent if there were none."""


class AdapterStage(TrainStage):
    """A stage that attaches adapters and trains them. A subclass writes `make_config`."""

    needs: ClassVar[Needs] = Needs(example=True, packages=("peft",))
    requires: ClassVar[Iterable[str]] = {Trait.TRAINABLE, Trait.FLOAT_WEIGHTS}
    forbids: ClassVar[Iterable[str]] = {Trait.ADAPTERS_ATTACHED, Trait.FAKE_QUANT}
    adds: ClassVar[Iterable[str]] = {Trait.ADAPTERS_ATTACHED}
    removes: ClassVar[Iterable[str]] = {Trait.FREE_STRUCTURE}

    targets: tuple[str, ...] = param((), "layers to adapt: linear, convolution or embedding; default: all linear layers except the output head", names="layers")
    skip: tuple[str, ...] = param((), "layers without adapters", names="layers")
    also_train: tuple[str, ...] = param((), "layers to train fully in addition to the adapters, such as a new classifier", names="layers")
    train: bool = param(True, "train the adapters; --no-train only attaches them")
    loss: float = param(1.0, "weight of the task's loss; 0 trains for the other stages of a together group only, and needs no labels", ge=0, advanced=True)

    def make_config(self, pattern: str, model: nn.Module | None = None) -> Any:
        """The `peft.PeftConfig`, for the layers of a model whose names match a regular expression; without the model to try one layer."""
        raise NotImplementedError

    def kinds(self) -> tuple[Any, ...]:
        """The classes of layers that can have such an adapter."""
        return adaptable_kinds()

    def adapts_packed(self) -> bool:
        """Whether the adapter is added to the weight and leaves it as it is, so that packed weights can have it."""
        return False

    def obstacle(self, layer: nn.Module) -> str:
        """Why a layer of `kinds` that the model calls can't be adapted; empty if it can, as far as is known without peft."""
        return convolution_obstacle(layer) if isinstance(layer, CONVOLUTIONS) else ""

    def obstacle_of_read(self, layer: nn.Module) -> str:
        """Why a layer whose weight the model reads directly can't be adapted, as the end of a sentence; empty if it can."""
        return f", where {self.title} has no form" if matrices_of(layer) else " and would bypass an adapter"

    def adapt_read(self, layers: Iterable[nn.Module]) -> int:
        """Adapt the weights that the model reads directly; their number."""
        return 0

    def describe(self, count: int) -> str:
        """The adapters in words."""
        return f"{count} adapters"

    def required_inputs(self) -> Needs:
        return self.needs | Needs(train=self.train, labels=self.train and self.loss > 0)

    def check(self, model: nn.Module, context: Context) -> Iterator[str]:
        try:
            select_layers(model, self.targets, self.kinds())
        except KdError as error:
            error.with_hints("%kd tune finetune --layers PATTERN trains layers of any kind whole")
            raise
        select_layers(model, (*self.skip, *self.also_train))
        yield from super().check(model, context)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Attach adapters, and freeze all other weights."""
        trained = select_layers(model, self.also_train)
        targets = find_targets(model, self, (*self.skip, *self.also_train), context)
        frozen = tuple(name for name, weight in model.named_parameters() if not weight.requires_grad)
        model.requires_grad_(False)
        attach_adapters(model, targets.called, partial(self.make_config, model=model))
        adapters = len(targets.called) + self.adapt_read(targets.read.values())
        for module in trained.values():
            module.requires_grad_(True)
        if frozen:
            setattr(model, FROZEN, frozen)
        counts = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
        total, learning = sum(count for count, _ in counts), sum(count for count, flag in counts if flag)
        context.note(f"{self.describe(adapters)}: {learning:,} of {total:,} parameters train ({learning / total:.2%})")
        return model

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


def convolution_obstacle(layer: Any) -> str:
    """What peft computes differently before and after a merge, or an empty string.

    >>> convolution_obstacle(nn.Conv2d(4, 4, 3, groups=2))
    "adapters of grouped convolutions can't be merged"
    """
    if layer.groups > 1:
        return "adapters of grouped convolutions can't be merged"
    if isinstance(layer, nn.Conv3d) and layer.kernel_size[:2] == (1, 1):
        return "adapters of 3-d convolutions whose kernel begins with 1 x 1 can't be merged"
    return ""
