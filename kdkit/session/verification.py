"""Verification: a stage's result is checked against what the stage declares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from kdkit.data import Batch, Data
from kdkit.errors import KdError
from kdkit.guards import explain_error
from kdkit.models import derive_inputs, find_difference
from kdkit.models.evaluation import evaluating
from kdkit.models.packed_tensors import equal
from kdkit.models.traits import SEEN, in_words, traits_of, uncertain_after
from kdkit.pipelines.order import after
from kdkit.stages.stage import Stage
from kdkit.tasks import Task


def check_result(stage: Stage, source: str, made: Any, parent: nn.Module, traits: frozenset[str], task: Task | None, example: Batch | None) -> None:
    """Check a stage's result against what the stage declares.

    Args:
        stage, source: the stage, and who offers it.
        made: what it returned.
        parent, traits: the model before the stage, and its traits.
        task, example: used to call both models, if the session has data.

    Raises:
        KdError: the result is not a model, has other traits than declared, equals the parent, or has outputs of another
            shape, or outputs that are not finite where the parent's are.
    """
    who = f"{stage.id.replace('.', ' ', 1)} (of {source})"
    if not isinstance(made, nn.Module):
        raise KdError(f"{who} returned {_kind(made)} instead of a model", "apply must return an nn.Module, or None for the copy that it changed")
    _check_traits(who, (after(stage, traits) & SEEN) - uncertain_after(stage.adds, traits), traits_of(made) - uncertain_after(stage.adds, traits))
    if not stage.may_change_nothing and stage.storage() is None and unchanged(made, parent):
        raise KdError(f"{who} changed nothing", "check its options: they select nothing, or there is nothing left to do")
    if task is not None and example is not None:
        _check_output(who, stage, made, parent, task, example)


def _kind(made: Any) -> str:
    name = type(made).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _check_traits(who: str, claimed: frozenset[str], seen: frozenset[str]) -> None:
    wrong = trait_faults(claimed, seen)
    if wrong:
        raise KdError(f"{who} {'; it '.join(wrong)}", "its author must correct the stage's adds and removes; the result was discarded")


def trait_faults(claimed: frozenset[str], seen: frozenset[str]) -> list[str]:
    """Traits that were declared and are missing, and traits that are present and were not declared, a line each.

    >>> trait_faults(frozenset({"onnx"}), frozenset())
    ['declares that the model has the onnxruntime form, and it has not']
    """
    absent, silent = sorted(claimed - seen), sorted(seen - claimed)
    wrong = [f"declares that the model has {in_words(trait)}, and it has not" for trait in absent]
    return wrong + [f"left {in_words(trait)} without declaring it" for trait in silent]


def unchanged(model: nn.Module, other: nn.Module) -> bool:
    """Whether two models have equal modules and tensors.

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
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return equal(one, other)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):  # torch's quantized layers keep weight and bias in a tuple
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def check_values(stage: Stage, source: str, made: nn.Module, parent: nn.Module, example: Batch | None, data: Data | None) -> None:
    """Check that a stage which promises to keep the outputs kept them, on the example, and a batch of the calibration data.

    Without data the batch is derived from the model's first layer; a model that such a batch does not fit is not compared.

    Raises:
        KdError: an output differs by more than the rounding of the dtype, or the result can't be called.
    """
    batches = [batch for batch in (example, next(iter(data.batches()), None) if data is not None else None) if batch is not None]
    for batch in batches or [each for each in (derive_inputs(parent),) if each is not None]:
        if fault := value_fault(made, parent, batch):
            raise KdError(
                f"{stage.title} (of {source}) promises to keep the outputs, and {fault}",
                "the result was discarded; the session is as it was",
                "if the outputs are meant to change, the stage's author declares keeps_values = False",
            )


def value_fault(made: nn.Module, parent: nn.Module, batch: Batch) -> str:
    """What differs between the outputs of a result and its parent by more than rounding; empty if nothing does."""
    try:
        return find_difference(parent, made, Batch(batch.args, batch.kwargs))
    except KdError as error:
        return f"the result can't be called: {error.message}"
    except Exception as error:  # the result may raise anything
        return f"the result can't be called: {explain_error(error, type(parent).__module__)}"


def _check_output(who: str, stage: Stage, made: nn.Module, parent: nn.Module, task: Task, example: Batch) -> None:
    for fault, hint in output_faults(stage, made, parent, task, example):
        raise KdError(f"{who} {fault}", f"the result was discarded{hint}")


def output_faults(stage: Stage, made: nn.Module, parent: nn.Module, task: Task, example: Batch) -> Iterator[tuple[str, str]]:
    """(what is wrong with the outputs of a result, what to do about it) for each fault."""
    expected = predicted(parent, task, example)
    try:
        given = predicted(made, task, example)
    except KdError:
        raise
    except Exception as error:
        yield f"returned a model that can't be called: {explain_error(error, type(parent).__module__)}", ""
        return
    if stage.keeps_output and given.shape != expected.shape:
        yield f"changed the output from {tuple(expected.shape)} to {tuple(given.shape)}", "; if that is intended, declare keeps_output = False"
    if torch.isfinite(expected).all() and not torch.isfinite(given).all():
        yield "returned a model whose outputs are not finite", "; try a smaller change, or a smaller learning rate"


def predicted(model: nn.Module, task: Task, example: Batch) -> torch.Tensor:
    """The task's prediction for a batch, on the CPU."""
    with evaluating(model):
        return task.prediction(example.call(model), example).float().cpu()
