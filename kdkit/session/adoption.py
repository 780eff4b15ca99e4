"""Adoption: convert a user's models, teachers and data, with the help of plugins."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from kdkit.data.conversion import _iterable, _known, _name, _told, adopt_text_rows
from kdkit.data.datasets import Data
from kdkit.data.text import Tokenization
from kdkit.errors import KdError
from kdkit.models.function_model import FunctionModel
from kdkit.models.input_preparation import input_preparation
from kdkit.models.wrappers import describe_other, read_held_model, refuse_unusable, unwrap_model
from kdkit.plugins.manager import manager
from kdkit.tasks.inference import predicts_next_token


def adopt_data(obj: Any, batch_size: int = 32, tokenizer: Any = None, model: nn.Module | None = None) -> Data:
    """Convert any object that holds data to `Data`; `ACCEPTED` lists the forms, `as_batch` those of single batches.

    Args:
        batch_size: items per batch, if `obj` has no batches of its own.
        tokenizer: for text: strings, {"text": ..., "label": ...}, {"prompt": ..., "completion": ...} or {"messages": ...} in a list, a frame or
            a Hugging Face dataset.
        model: its maximum length truncates the text; a causal language model takes plain text as its own labels.

    A tuple of arrays is one data set, (inputs, labels). A list is a list of batches, or of items if their labels are
    single numbers. An iterator that can be read only once is kept in memory. Plugins convert further kinds
    (`kdkit_adopt_data`).

    Raises:
        KdError: the form is unknown, the data is empty or text, or its parts differ in length.

    >>> import torch
    >>> adopt_data((torch.zeros(50, 3), torch.zeros(50, dtype=torch.long)))
    Data(arrays of (x, y): 50 items, batches of 32)
    """
    if isinstance(obj, Data):
        return prepared_for(obj, model)
    try:
        data = _known(obj, batch_size, _tokenization(tokenizer, model)) or _from_plugin(obj, batch_size) or _iterable(obj, batch_size)
    except KdError as error:
        error.with_hints(*manager().unavailable_hints())
        if tokenizer is not None and not _is_tokenizer(tokenizer):
            error.with_hints(f"the session's tokenizer, {_name(tokenizer)}, is not a transformers tokenizer", "transformers.AutoTokenizer.from_pretrained(...) makes one")
        raise
    if data.items == 0:
        raise KdError(f"no items in {data.reason}", "give data with at least one item")
    try:
        data.reason += _told(data)
    except KdError as error:
        # items that are no batch of numbers may be text; an error of the code that loads them has a cause
        text = None if error.__cause__ is not None else adopt_text_rows(obj, _tokenization(tokenizer, model), batch_size)
        if text is None:
            raise
        data = text
        data.reason += _told(data)
    return prepared_for(data, model)


def prepared_for(data: Data, model: nn.Module | None) -> Data:
    """Data whose batches a model can be called with: with decoder inputs derived from labels, and pairs as single items."""
    found = None if model is None or data.prepare is not None else input_preparation(model, data.example())
    return data if found is None else data.prepared(*found)


def _is_tokenizer(obj: Any) -> bool:
    return callable(obj) and hasattr(obj, "eos_token_id")


def _tokenization(tokenizer: Any, model: nn.Module | None) -> Tokenization | None:
    if not _is_tokenizer(tokenizer):
        return None
    limits = (getattr(tokenizer, "model_max_length", None), getattr(getattr(model, "config", None), "max_position_embeddings", None))
    # tokenizers without a limit have one of 10**30
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**9]
    return Tokenization(tokenizer, min(known, default=None), model is not None and predicts_next_token(model))


def _from_plugin(obj: Any, batch_size: int) -> Data | None:
    data = manager().first("kdkit_adopt_data", warnings.warn, obj=obj, batch_size=batch_size)
    if data is not None and not isinstance(data, Data):
        raise KdError(f"a plugin's kdkit_adopt_data returned {_name(data)}, not Data, for {_name(obj)}", "%kd plugins lists the plugins that implement the hook")
    return data


def adopt_teacher(obj: Any, name: str = "teacher") -> nn.Module:
    """Convert a teacher to a module: a model, or a function of a batch's inputs; a scripted model serves as such a function.

    Raises:
        KdError: it is neither.
    """
    if isinstance(obj, torch.jit.ScriptModule):
        return FunctionModel(lambda *args, **kwargs: obj(*args, **kwargs), name)
    if isinstance(obj, nn.Module | type) or not callable(obj) or isinstance(obj, torch.export.ExportedProgram):
        return adopt_model(obj)
    try:
        return adopt_model(obj)
    except KdError:
        return FunctionModel(obj, name)


def adopt_model(obj: Any) -> nn.Module:
    """Convert a user's model to an nn.Module; plugins convert further kinds (`kdkit_adopt_model`).

    Compiled and data-parallel models are unwrapped, and the trainers and pipelines of transformers give theirs.

    Raises:
        KdError: no plugin can convert it, or it is a form of a model that can't be changed.
    """
    if (held := read_held_model(obj)) is not None:
        obj = held
    refuse_unusable(obj)
    if isinstance(obj, nn.Module):
        return unwrap_model(obj)
    model = manager().first("kdkit_adopt_model", warnings.warn, obj=obj)
    if isinstance(model, nn.Module):
        return model
    raise KdError(*describe_other(obj))
