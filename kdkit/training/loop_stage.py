"""A stage as the training loop sees it: its options, the model it trains, and the part it adds."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from kdkit.errors import KdError
from kdkit.stages.stage import Stage
from kdkit.training.options import LoopOptions

if TYPE_CHECKING:
    from torch import nn

    from kdkit.stages.context import Context
    from kdkit.training.part import TrainPart


class LoopStage(LoopOptions, Stage):
    """What `fit` calls on each stage of a loop: `make_student`, `prepare`, `part`, then `finish`."""

    def make_student(self, model: nn.Module, context: Context) -> nn.Module | None:
        """Return another model to train in place of `model`, or None to train `model`. At most one stage of a loop may return one."""
        return None

    def prepare(self, model: nn.Module, context: Context) -> nn.Module | None:
        """Prepare the model for training, in place or wrapped: attach adapters, simulate quantization, add masks.

        The stages of a loop prepare in their order, each what the previous one returned. Keep the names of existing modules:
        wrap leaf layers or use `torch.nn.utils.parametrize`, because other stages look layers up by name.

        Args:
            model: a private copy, in eval mode, on its own device. It is discarded after an error.

        Returns:
            The prepared model; None means `model`.
        """
        return model

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        """Return this stage's contribution to the loop: loss terms, modules and hooks. `model` is prepared by all stages."""
        raise KdError(f"{type(self).__name__} has no part", "write part(self, model, context) that returns a kdkit.TrainPart")

    def finish(self, model: nn.Module, context: Context) -> nn.Module | None:
        """Convert the trained model: fold masks, round weights, unwrap. Stages finish in reverse order; skipped after an error.

        Args:
            model: in eval mode and without gradients, after all parts are closed.

        Returns:
            The finished model; None means `model`.
        """
        return model

    def learner(self, model: nn.Module, context: Context) -> nn.Module:
        """Deprecated: override `make_student` to train another model, or `prepare` to change this one."""
        return model

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "learner" in vars(cls) and "make_student" not in vars(cls):
            _adapt_learner(cls)


def _adapt_learner(stage: type[LoopStage]) -> None:
    """Call the deprecated `learner` of a class where the loop asks for a student; what it changes in place stays changed."""
    warnings.warn(
        f"{stage.__qualname__}.learner is deprecated: write make_student(self, model, context) to train another model, or prepare(...) to change this one",
        DeprecationWarning,
        stacklevel=4,
    )

    def make_student(self: LoopStage, model: nn.Module, context: Context) -> nn.Module | None:
        learner = self.learner(model, context)
        return None if learner is model else learner

    stage.make_student = make_student  # type: ignore[method-assign]
