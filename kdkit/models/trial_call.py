"""A trial call of a model with a batch, and error messages that explain why it fails."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from kdkit.data.batch import Batch
from kdkit.errors import KdError
from kdkit.guards import explain_error
from kdkit.models.evaluation import evaluating
from kdkit.models.input_preparation import DECODER, is_encoder_decoder


def try_call(model: nn.Module, batch: Batch, graph: bool = False) -> Any:
    """The output of `model` for the first two items of a batch, in eval mode.

    Args:
        graph: whether the output keeps its graph, if the weights need gradients.

    Raises:
        KdError: the call fails; the message names the parameters of forward and the contents of the batch.

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
        with evaluating(model), torch.set_grad_enabled(graph):
            return (some if weight is None else some.to(weight.device)).call(model)
    except KdError:
        raise
    except Exception as error:
        raise failure(f"{name} fails on the first items", model, some, error) from error


def failure(what: str, model: nn.Module, batch: Batch, error: Exception) -> KdError:
    """A `KdError` that explains an error which a model raised for a batch.

    Args:
        what: the start of the message.

    >>> print(failure("Linear fails", nn.Linear(3, 1), Batch((torch.zeros(2, 4),)), ValueError("4 is not 3")))
    Linear fails: ValueError: 4 is not 3
      hint: the batch gives float32 (2, 4); no labels
    """
    if isinstance(error, IndexError) and (beyond := _beyond_embedding(model, batch)):
        return KdError(f"{what}: {beyond}", "the tokenizer of the data must be the model's own, with its vocabulary", f"the batch gives {batch}")
    return KdError(f"{what}: {explain_error(error, type(model).__module__)}", f"the batch gives {batch}", *_remedies(model, batch))


def _beyond_embedding(model: nn.Module, batch: Batch) -> str:
    """Which integer of a batch is beyond an embedding of the model; empty if none is.

    >>> _beyond_embedding(nn.Embedding(50, 4), Batch((torch.tensor([[3, 61]]),)))
    'the batch has token 61, and the embedding has 50 rows, for tokens 0 to 49'
    """
    inputs = [tensor for tensor in (*batch.args, *batch.kwargs.values()) if isinstance(tensor, torch.Tensor) and not tensor.is_floating_point() and tensor.numel()]
    largest = max((int(tensor.max()) for tensor in inputs), default=-1)
    rows = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding) and module.num_embeddings <= largest]
    return f"the batch has token {largest}, and the embedding has {max(rows)} rows, for tokens 0 to {max(rows) - 1}" if rows else ""


def _short(signature: inspect.Signature) -> str:
    """A signature without types."""
    parameters = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


def _remedies(model: nn.Module, batch: Batch) -> Iterator[str]:
    if is_encoder_decoder(getattr(model, "_orig_mod", model)) and not any(name in batch.kwargs for name in DECODER):
        yield 'an encoder-decoder needs "labels", token ids (batch, tokens), or "decoder_input_ids" in each batch'
    kinds = {tensor.dtype for tensor in (*batch.args, *batch.kwargs.values()) if isinstance(tensor, torch.Tensor)}
    weights = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    if torch.uint8 in kinds:
        yield "the inputs are uint8; scale them as in the model's training, such as x.float() / 255"
    elif weights and not weights & kinds and any(kind.is_floating_point for kind in kinds):
        yield f"the model's weights are {' and '.join(sorted(str(kind).removeprefix('torch.') for kind in weights))}; kdkit works on float32 models: model.float()"
    if len(batch.args) > 1:
        yield "the last part of a tuple is the labels; without labels, write ((x1, x2), None)"
