"""Fine-tuning: training on labels, to recover accuracy after a compression or to fit new data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from kdkit import Needs, Step, Term, TrainPart, TrainStage, param
from kdkit.models import select_layers
from kdkit.training import FrozenLayers

if TYPE_CHECKING:
    from kdkit import Context


class Finetune(TrainStage):
    """Train on labels with the task's loss.

    Loss per item or token: `task.losses`, such as cross entropy for classes.
    """

    id: ClassVar[str] = "tune.finetune"
    known_as: ClassVar[tuple[str, ...]] = ("fine-tuning", "finetuning")
    needs: ClassVar[Needs] = Needs(train=True, labels=True)

    layers: tuple[str, ...] = param((), "patterns of the layers to train; all others stay bit for bit, the statistics of norms too; default: all layers", names="layers")

    def check(self, model: nn.Module, context: Context) -> Iterator[str]:
        select_layers(model, self.layers)
        yield from super().check(model, context)

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return Supervised(self.layers)


class Supervised(TrainPart):
    """The task's loss on labels; layers outside `layers` stay bit for bit, their running statistics too."""

    def __init__(self, layers: tuple[str, ...]):
        self.layers = layers
        self.frozen: FrozenLayers | None = None

    def open(self, model: nn.Module) -> None:
        if self.layers:
            self.frozen = FrozenLayers(model, select_layers(model, self.layers).values())

    def terms(self, step: Step) -> Iterable[Term]:
        yield Term.from_labels(step)

    def close(self, model: nn.Module) -> None:
        if self.frozen:
            self.frozen.restore()
