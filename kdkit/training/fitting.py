"""Fitting: one loop for the parts of one or more stages, on one model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kdkit.errors import KdError
from kdkit.guards.cleanup import always_run
from kdkit.guards.random_state import seeded
from kdkit.training.accelerator import GlobalState, make_accelerator, without_accelerate_marks
from kdkit.training.blame import note_stage
from kdkit.training.loop import Loop
from kdkit.training.loop_stage import LoopStage
from kdkit.training.options import LoopOptions
from kdkit.training.part import TrainPart
from kdkit.training.preparation import Prepared, finish_model, prepare_model

if TYPE_CHECKING:
    from kdkit.stages.context import Context


def fit(model: nn.Module, stages: Sequence[LoopStage], context: Context) -> nn.Module:
    """Train a model for the parts of one or more stages, in one loop with the first stage's loop options.

    A student of one of the stages takes the model's place. The stages prepare it in their order, each what the previous one
    returned; after the loop they finish it in reverse order.

    Args:
        model: trained in place, unless a stage brings a student. Pass a private copy: an error or interrupt leaves it half trained.
        stages: their parts' loss terms are added.
        context: of the run; data, teachers and seed come from it.

    Returns:
        The trained model, in eval mode, without gradients, with its `requires_grad` flags and on its device as before.

    Raises:
        KdError: no data, no labels where a part needs them, nothing to train, two students, or a loss that is not finite.
        Cancelled: the user asked to stop.
    """
    state = GlobalState()
    owners: list[tuple[Any, LoopStage]] = [(stage, stage) for stage in stages]
    try:
        state.clear()
        prepared = prepare_model(model, stages, context)
        _note_unused_options(stages, context)
        _train(prepared, stages, owners)
        return finish_model(prepared.model, stages, prepared.context)
    except BaseException as error:
        note_stage(error, owners)
        raise
    finally:
        try:
            state.put_back()
        except KeyboardInterrupt:
            state.put_back()
            raise


def _train(prepared: Prepared, stages: Sequence[LoopStage], owners: list[tuple[Any, LoopStage]]) -> None:
    model, context = prepared.model, prepared.context
    accelerator = make_accelerator(context.device, stages[0].precision)
    stack = contextlib.ExitStack()
    with always_run(stack.close):
        stack.enter_context(_in_training(model, accelerator.device))
        stack.enter_context(seeded(context.seed))
        stack.enter_context(without_accelerate_marks([model]))
        parts = _open_parts(prepared, stages, stack, accelerator.device, owners)
        Loop(model, stages, parts, context, accelerator).run()


def _note_unused_options(stages: Sequence[LoopStage], context: Context) -> None:
    for stage in stages[1:]:
        unused = [f"--{name.replace('_', '-')}" for name, value in stage.changed().items() if name in LoopOptions.model_fields and value != getattr(stages[0], name)]
        if unused:
            context.note(f"{stage.title}: {' '.join(unused)} not used; the loop follows {stages[0].title}")


@contextlib.contextmanager
def _in_training(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model on the device and in train mode; afterwards on its own device, in eval mode, with its flags and no gradients."""
    flags = [(weight, weight.requires_grad) for weight in model.parameters()]
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    moved = len(devices) == 1 and devices != {device}
    try:
        for weight, _ in flags:
            weight.grad = None
        if moved:
            model.to(device)
        model.train()
        yield
    finally:
        for weight, flag in flags:
            weight.requires_grad_(flag)
        for weight in model.parameters():
            weight.grad = None
        model.eval()
        if moved:
            model.to(devices.pop())


def _open_parts(
    prepared: Prepared, stages: Sequence[LoopStage], stack: contextlib.ExitStack, device: torch.device, owners: list[tuple[Any, LoopStage]]
) -> dict[str, TrainPart]:
    """The parts of the stages, by title; the stack closes them in reverse order.

    Args:
        owners: receives each part with its stage.

    Raises:
        KdError: a part can't use the model; where a stage renamed modules, a hint says so.
    """
    parts: dict[str, TrainPart] = {}
    for stage in stages:
        title = stage.id if stage.id not in parts else f"{stage.id}-{len(parts) + 1}"
        try:
            part = parts[title] = stage.part(prepared.model, prepared.context)
            owners.append((part, stage))
            stack.callback(part.close, prepared.model)
            part.open(prepared.model)
        except KdError as error:
            raise prepared.explain(error)  # noqa: B904  # the same error, with a hint
        part.modules.to(device)
        part.modules.train()
    return parts
