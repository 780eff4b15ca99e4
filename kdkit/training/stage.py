"""The stage that trains: it declares what to train for, and kdkit's loop trains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

from kdkit.models.traits import Trait
from kdkit.stages.stage import Forecast, Needs
from kdkit.training.loop_stage import LoopStage

if TYPE_CHECKING:
    from torch import nn

    from kdkit.stages.context import Context


class TrainStage(LoopStage):
    """A stage that trains: override `part`, and where needed `make_student`, `prepare` and `finish`; kdkit's loop trains.

    >>> from typing import ClassVar
    >>> from kdkit import Term, TrainPart
    >>> class Labels(TrainPart):
    ...     def terms(self, step):
    ...         yield Term.from_labels(step)
    >>> class Plain(TrainStage):
    ...     '''Train on labels.'''
    ...     id: ClassVar = "tune.plain"
    ...     def part(self, model, context):
    ...         return Labels()
    >>> Plain(epochs=3).line()
    'tune plain --epochs 3'
    """

    needs: ClassVar[Needs] = Needs(train=True)
    requires: ClassVar[Iterable[str]] = frozenset({Trait.TRAINABLE})
    shares_loop: ClassVar[bool] = True
    """Whether the stage may be in a `together` group; False where `apply` runs several trainings."""

    def check(self, model: nn.Module, context: Context) -> Iterable[str]:
        """Conflicts between loop options; a subclass that checks more yields these too."""
        return self.conflicts()

    def apply(self, model: nn.Module, context: Context) -> nn.Module | None:
        """Train `model` in kdkit's loop."""
        return self.fit_with([], model, context)

    def fit_with(self, others: Sequence[LoopStage], model: nn.Module, context: Context) -> nn.Module:
        """Train `model` for this stage and others in one loop with this stage's loop options; see `kdkit.training.fit`."""
        from kdkit.training.fitting import fit

        return fit(model, [self, *others], context)

    def forecast(self, model: nn.Module, context: Context) -> Forecast:
        """The structure after preparing and finishing; training itself changes no structure."""
        from kdkit.training.preparation import preview

        return Forecast(preview(model, [self], context))
