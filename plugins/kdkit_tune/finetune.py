"""Fine-tuning: plain training on labels, to recover what a compression took away or to fit new data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from kdkit.contract import Needs, TrainStage, param
from kdkit.patterns import match
from kdkit.training import Step, Term, TrainPart

if TYPE_CHECKING:
    from kdkit.context import Context


class Finetune(TrainStage):
    """Train on labels, with the task's own loss.

    Loss per item, or token: `task.losses`, such as cross entropy for classes.
    """

    id: ClassVar[str] = "tune.finetune"
    needs: ClassVar[Needs] = Needs(train=True, labels=True)

    layers: tuple[str, ...] = param((), "patterns of the layers to train; all that can be when none are named", refers="layers")

    def check(self, model: nn.Module, context: Context) -> Iterator[str]:
        match(model, self.layers)
        yield from super().check(model, context)

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return Supervised(self.layers)


class Supervised(TrainPart):
    """The task's loss on labels; the layers outside `layers` hold still."""

    def __init__(self, layers: tuple[str, ...]):
        self.layers = layers

    def open(self, model: nn.Module) -> None:
        if not self.layers:
            return
        chosen = {id(weight) for module in match(model, self.layers).values() for weight in module.parameters()}
        for weight in model.parameters():
            if id(weight) not in chosen:
                weight.requires_grad_(False)

    def terms(self, step: Step) -> Iterable[Term]:
        yield Term.of_labels(step)
