"""Before and after the loop: which model is trained, how the stages prepare it, and how they finish it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from kdkit.errors import KdError
from kdkit.guards.random_state import seeded
from kdkit.training.loop_stage import LoopStage

if TYPE_CHECKING:
    from kdkit.stages.context import Context


@dataclass
class Prepared:
    """The model that a loop trains.

    Attributes:
        model: the student or the session's model, prepared by all stages.
        context: of the run; with a student, `original` is the model that it replaces, so that this model teaches by default.
        lost: the names of modules that `prepare` removed, by the title of the stage.
    """

    model: nn.Module
    context: Context
    lost: dict[str, list[str]] = field(default_factory=dict)

    def explain(self, error: KdError) -> KdError:
        """Name the stage whose `prepare` renamed modules as a possible cause of an error."""
        for title, names in self.lost.items():
            named = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            error.with_hints(f"{title} renamed modules of the model ({named}): its prepare must keep names, so wrap leaf layers or use torch.nn.utils.parametrize")
        return error


def prepare_model(model: nn.Module, stages: Sequence[LoopStage], context: Context) -> Prepared:
    """Choose the model to train, and let each stage prepare what the previous one returned.

    Each stage draws its random numbers from the run's seed, so that it prepares the same model alone and in a group.

    Raises:
        KdError: two stages return a student, or a stage returns something other than a model.
    """
    student = _only_student(model, stages, context)
    prepared = Prepared(model, context) if student is None else Prepared(student, replace(context, original=model))
    for stage in stages:
        before = dict(prepared.model.named_modules())
        with seeded(context.seed):
            prepared.model = _module(stage.prepare(prepared.model, prepared.context), prepared.model, stage, "prepare")
        after = dict(prepared.model.named_modules())
        if lost := [name for name in before if name not in after]:
            prepared.lost[stage.title] = lost
    return prepared


def finish_model(model: nn.Module, stages: Sequence[LoopStage], context: Context) -> nn.Module:
    """Let the stages finish the trained model, the last one first."""
    for stage in reversed(stages):
        with seeded(context.seed):
            model = _module(stage.finish(model, context), model, stage, "finish")
    return model


def preview(model: nn.Module, stages: Sequence[LoopStage], context: Context) -> nn.Module:
    """The structure that a fit would return, without training."""
    prepared = prepare_model(model, stages, context)
    return finish_model(prepared.model, stages, prepared.context)


def _only_student(model: nn.Module, stages: Sequence[LoopStage], context: Context) -> nn.Module | None:
    """The student that one of the stages returns."""
    made = [(stage, stage.make_student(model, context)) for stage in stages]
    students = [(stage, _module(student, model, stage, "make_student")) for stage, student in made if student is not None and student is not model]
    if not students:
        return None
    if len(students) > 1:
        raise KdError(f"{' and '.join(stage.title for stage, _ in students)} of one loop bring a student each", "leave out --student in all but one")
    bringing, student = students[0]
    if unready := next((stage for stage in stages if stage is not bringing and type(stage).learner is not LoopStage.learner), None):
        raise KdError(f"{unready.title} changes the model in `learner`, and {bringing.title} trains a student in its place", "change the model in `prepare` instead")
    return student


def _module(returned: Any, given: nn.Module, stage: LoopStage, method: str) -> nn.Module:
    if returned is None:
        return given
    if not isinstance(returned, nn.Module):
        raise KdError(
            f"{stage.title}: {method} returned {type(returned).__name__}, not a model", f"return an nn.Module from {method}, or None for the model it was given"
        )
    return returned
