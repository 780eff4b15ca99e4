"""Inputs that a model needs and a usual batch of its data does not have: decoder inputs, and one input per text of a pair."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch
from kdkit.errors import KdError

Prepare = Callable[[Batch], Batch]
"""A function: a batch as it was loaded -> the batch that the model is called with."""

DECODER = ("decoder_input_ids", "decoder_inputs_embeds")


def input_preparation(model: nn.Module, example: Batch) -> tuple[Prepare, str] | None:
    """How the batches of a data set become inputs of a model, and a few words on it; None if they are inputs already.

    Args:
        example: a batch of the data set.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if is_encoder_decoder(model) and _is_token_ids(example.labels) and not any(name in example.kwargs for name in DECODER):
        return DecoderInputs(model), "decoder inputs derived from the labels"
    if _is_pairs(model, example):
        return interleave_pairs, "the two inputs of a pair as two items, one after the other"
    return None


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether a model is an encoder with a decoder, of transformers, that generates sequences."""
    config = getattr(model, "config", None)
    generates = getattr(model, "can_generate", None)
    return bool(getattr(config, "is_encoder_decoder", False)) and callable(generates) and bool(generates()) and DECODER[0] in inspect.signature(model.forward).parameters


def _is_token_ids(labels: Any) -> bool:
    return isinstance(labels, Tensor) and labels.ndim == 2 and not labels.is_floating_point()


class DecoderInputs:
    """Adds the decoder's inputs to a batch: the labels moved one place to the right, as the model itself derives them from labels."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __call__(self, batch: Batch) -> Batch:
        if not _is_token_ids(batch.labels) or any(name in batch.kwargs for name in DECODER):
            return batch
        return replace(batch, kwargs={**batch.kwargs, "decoder_input_ids": self.shifted(batch.labels)})

    def shifted(self, labels: Tensor) -> Tensor:
        """The inputs of the decoder for labels, both (batch, tokens) int64.

        Raises:
            KdError: the model has no method for it, or its configuration lacks a token that the method needs.
        """
        name = type(self.model).__name__
        config: Any = self.model.config
        way = getattr(self.model, "prepare_decoder_input_ids_from_labels", None) or getattr(self.model, "_shift_right", None)
        shift = getattr(sys.modules.get(type(self.model).__module__), "shift_tokens_right", None)
        try:
            if way is not None:
                return way(labels)
            if shift is not None:
                return shift(labels, config.pad_token_id, config.decoder_start_token_id)
        except (ValueError, TypeError, AttributeError, AssertionError) as error:
            raise KdError(
                f"{name} can't derive decoder inputs from labels: {error}",
                "set model.config.decoder_start_token_id and model.config.pad_token_id",
                'or give batches with "decoder_input_ids"',
            ) from error
        raise KdError(f"{name} needs decoder inputs and has no method that derives them from labels", 'give batches with "decoder_input_ids"')


def _is_pairs(model: nn.Module, example: Batch) -> bool:
    """Whether a batch has two inputs of one kind and a score, and the model takes one input."""
    if len(example.args) != 2 or example.kwargs or not isinstance(example.labels, Tensor) or example.labels.ndim != 1:
        return False
    one, two = example.args
    tensors = isinstance(one, Tensor) and isinstance(two, Tensor)
    if not tensors or one.shape != two.shape or one.dtype != two.dtype or not example.labels.is_floating_point():
        return False
    signature = inspect.signature(model.forward)
    return _binds(signature, one) and not _binds(signature, one, two)


def _binds(signature: inspect.Signature, *args: Any) -> bool:
    try:
        signature.bind(*args)
    except TypeError:
        return False
    return True


def interleave_pairs(batch: Batch) -> Batch:
    """Items 2i and 2i + 1 are the two inputs of pair i; both have the label and the fields of the pair.

    >>> interleave_pairs(Batch((torch.tensor([1, 2]), torch.tensor([10, 20])), labels=torch.tensor([0.5, 1.0])))
    Batch(args=(tensor([ 1, 10,  2, 20]),), kwargs={}, labels=tensor([0.5000, 0.5000, 1.0000, 1.0000]), numbers=None, fields={})
    """
    numbers = None if batch.numbers is None else torch.stack([2 * batch.numbers, 2 * batch.numbers + 1], 1).flatten()
    fields = {name: [value for value in values for _ in range(2)] for name, values in batch.fields.items()}
    labels = None if batch.labels is None else batch.labels.repeat_interleave(2)
    return Batch((torch.stack(batch.args, 1).flatten(0, 1),), labels=labels, numbers=numbers, fields=fields)
