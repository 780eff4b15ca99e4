"""Several training stages in one loop: the `together:` group of a pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar

from kdkit.errors import KdError
from kdkit.stages.stage import Forecast, Needs, Stage
from kdkit.training.stage import TrainStage

if TYPE_CHECKING:
    from torch import nn

    from kdkit.stages.context import Context


def _union(fact: str) -> Any:
    """The union of a trait declaration over the group's stages."""
    return property(lambda group: frozenset().union(*(getattr(stage, fact) for stage in group.stages)))


class Together(Stage):
    """Several training stages in one loop: their loss terms are added, and the first stage's loop options apply."""

    id: ClassVar[str] = "together"
    stages: tuple[Any, ...]

    def model_post_init(self, context: Any) -> None:
        others = [stage.line() for stage in self.stages if not isinstance(stage, TrainStage)]
        if others or len(self.stages) < 2:
            raise KdError(
                f"together: {others[0]} does not train" if others else "together needs two stages or more",
                "put stages that train, such as distill soft and tune finetune, in one group",
            )
        if alone := next((stage for stage in self.stages if not stage.shares_loop), None):
            raise KdError(f"together: {alone.title} runs several trainings in sequence, and a group is one training", "run it on its own, before or after the group")
        if stored := next((stage for stage in self.stages if stage.storage() is not None), None):
            raise KdError(
                f"together: {stored.title} chooses how the weights are stored, and the group still changes them",
                "run it on its own, after the group",
            )

    requires = _union("requires")
    forbids = _union("forbids")
    adds = _union("adds")
    removes = _union("removes")

    @property
    def keeps_output(self) -> bool:  # type: ignore[override]
        return all(stage.keeps_output for stage in self.stages)

    def required_inputs(self) -> Needs:
        return reduce(Needs.__or__, (stage.required_inputs() for stage in self.stages))

    def optional_inputs(self) -> Needs:
        return reduce(Needs.__or__, (stage.optional_inputs() for stage in self.stages))

    def named_objects(self) -> Iterator[tuple[str, str, str]]:
        for stage in self.stages:
            yield from stage.named_objects()

    def check(self, model: nn.Module, context: Context) -> Iterator[str]:
        for stage in self.stages:
            yield from stage.check(model, context)

    def apply(self, model: nn.Module, context: Context) -> nn.Module | None:
        first, *others = self.stages
        return first.fit_with(others, model, context)

    def reference_model(self, model: nn.Module, context: Context) -> tuple[str, nn.Module] | None:
        """That of the first stage that has one; preferably the current model, which teaches a student that replaces it."""
        found = [reference for stage in self.stages if (reference := stage.reference_model(model, context)) is not None]
        return next((reference for reference in found if reference[1] is model), found[0] if found else None)

    def forecast(self, model: nn.Module, context: Context) -> Forecast:
        """The structure after all stages prepared and finished the model or its student."""
        from kdkit.training.preparation import preview

        return Forecast(preview(model, self.stages, context))

    def line(self) -> str:
        return "\n".join(["together:", *("    " + stage.line() for stage in self.stages)])
