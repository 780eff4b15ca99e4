"""Checks: what the kit verifies of a stage's work instead of believing it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from kdkit.contract import Stage
from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models import SEEN, evaluating, traits_of
from kdkit.pipeline import after, in_words
from kdkit.tasks import Task


def check_result(stage: Stage, source: str, made: Any, parent: nn.Module, traits: frozenset[str], task: Task | None, example: Batch | None) -> None:
    """Hold a stage's result against what the stage declares.

    Args:
        stage: that ran, and `source`: who offers it.
        made: what it returned.
        parent: the model it was handed a copy of, and `traits`: what was known of that.
        task, example: to call both on, if the session has data.

    Raises:
        KdError: not a model, traits that were declared and are not there (or the reverse), nothing changed, outputs of
            another shape, or outputs that are not finite where the parent's were.
    """
    who = f"{stage.id.replace('.', ' ', 1)} (of {source})"
    if not isinstance(made, nn.Module):
        raise KdError(f"{who} returned {_kind(made)} instead of a model", "apply must return an nn.Module, or None for the copy it was handed")
    _check_traits(who, after(stage, traits), traits_of(made))
    if not stage.may_change_nothing and unchanged(made, parent):
        raise KdError(f"{who} changed nothing", "look at its options: nothing was selected, or nothing was left to do")
    if task is not None and example is not None:
        _check_output(who, stage, made, parent, task, example)


def _kind(made: Any) -> str:
    name = type(made).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _check_traits(who: str, claimed: frozenset[str], seen: frozenset[str]) -> None:
    wrong = trait_faults(claimed & SEEN, seen)
    if wrong:
        raise KdError(f"{who} {'; it '.join(wrong)}", "its author must mend the stage's adds and removes; the result was thrown away")


def trait_faults(claimed: frozenset[str], seen: frozenset[str]) -> list[str]:
    """What is said of a model's traits and is not so, and what is so and was not said, a line each.

    >>> trait_faults(frozenset({"onnx"}), frozenset())
    ['declares that the model has the onnxruntime form, and it has not']
    """
    absent, silent = sorted(claimed - seen), sorted((seen & SEEN) - claimed)
    wrong = [f"declares that the model has {in_words(trait)}, and it has not" for trait in absent]
    return wrong + [f"left {in_words(trait)} without declaring it" for trait in silent]


def unchanged(model: nn.Module, other: nn.Module) -> bool:
    """Whether two models are of one kind with equal modules, tensors and flags.

    >>> net = nn.Linear(2, 2)
    >>> unchanged(net, net)
    True
    """
    if _modules(model) != _modules(other) or getattr(model, "onnx", None) != getattr(other, "onnx", None):
        return False
    mine, theirs = model.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(_equal(mine[key], theirs[key]) for key in mine)


def _modules(model: nn.Module) -> list[tuple[str, type, str]]:
    return [(name, type(module), module.extra_repr()) for name, module in model.named_modules()]


def _equal(one: Any, other: Any) -> bool:
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return bool(one == other)
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def _check_output(who: str, stage: Stage, made: nn.Module, parent: nn.Module, task: Task, example: Batch) -> None:
    for fault, hint in output_faults(stage, made, parent, task, example):
        raise KdError(f"{who} {fault}", f"the result was thrown away{hint}")


def output_faults(stage: Stage, made: nn.Module, parent: nn.Module, task: Task, example: Batch) -> Iterator[tuple[str, str]]:
    """(what is wrong with a result's outputs, what to do about it)."""
    expected = predicted(parent, task, example)
    try:
        given = predicted(made, task, example)
    except KdError:
        raise
    except Exception as error:
        yield f"left a model that can't be called any more: {type(error).__name__}: {error}", ""
        return
    if stage.keeps_output and given.shape != expected.shape:
        yield f"changed the output from {tuple(expected.shape)} to {tuple(given.shape)}", "; a stage that means to do so declares keeps_output = False"
    if torch.isfinite(expected).all() and not torch.isfinite(given).all():
        yield "left a model whose outputs are not finite", "; try a smaller change, or a smaller learning rate"


def predicted(model: nn.Module, task: Task, example: Batch) -> torch.Tensor:
    """The task's prediction for a batch, on the CPU."""
    with evaluating(model):
        return task.prediction(example.call(model), example).float().cpu()
