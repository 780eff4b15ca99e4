"""Whether a model can be called with a batch, and if not, why."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from kdkit.data.batch import Batch
from kdkit.errors import KdError
from kdkit.models import evaluating


def try_call(model: nn.Module, batch: Batch) -> Any:
    """What `model` gives for the first two items of a batch, in eval mode and without gradients.

    Raises:
        KdError: it can't be called with such a batch; the message names what forward wants and what the batch gives.

    >>> try_call(nn.Linear(3, 1), Batch((torch.zeros(8, 3),))).shape
    torch.Size([2, 1])
    """
    some = batch[:2]
    name, signature = type(model).__name__, inspect.signature(model.forward)
    try:
        signature.bind(*some.args, **some.kwargs)
    except TypeError as error:
        raise KdError(
            f"{name} can't take such a batch: {error}",
            f"{name}.forward{_short(signature)}",
            f"the batch gives {some}",
            "give batches of (x, y), (x1, x2, y) for several inputs, or dicts whose keys are forward's arguments",
        ) from error
    weight = next(model.parameters(), None)
    try:
        with evaluating(model):
            return (some if weight is None else some.to(weight.device)).call(model)
    except KdError:
        raise
    except Exception as error:
        raise failure(f"{name} fails on the first items", model, some, error) from error


def failure(what: str, model: nn.Module, batch: Batch, error: Exception) -> KdError:
    """The error for a person, of an error that a model raised for a batch; `what` failed begins the message.

    >>> print(failure("Linear fails", nn.Linear(3, 1), Batch((torch.zeros(2, 4),)), ValueError("4 is not 3")))
    Linear fails: ValueError: 4 is not 3
      hint: the batch gives float32 (2, 4); no labels
    """
    told = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    return KdError(f"{what}: {type(error).__name__}: {told}", f"the batch gives {batch}", *_remedies(model, batch))


def _short(signature: inspect.Signature) -> str:
    """A signature without types."""
    parameters = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


def _remedies(model: nn.Module, batch: Batch) -> Iterator[str]:
    kinds = {tensor.dtype for tensor in (*batch.args, *batch.kwargs.values()) if isinstance(tensor, torch.Tensor)}
    weights = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    if torch.uint8 in kinds:
        yield "the inputs are uint8; scale them as in the model's training, such as x.float() / 255"
    elif weights and not weights & kinds and any(kind.is_floating_point for kind in kinds):
        yield f"the model's weights are {' and '.join(sorted(str(kind).removeprefix('torch.') for kind in weights))}; kdkit works on float32 models: model.float()"
    if len(batch.args) > 1:
        yield "of a tuple the last part is the labels; write ((x1, x2), None) where there are none"
