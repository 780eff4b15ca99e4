"""Guessing the task of a model from its class, its labels and the shape of its outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data import Batch, try_call
from kdkit.errors import KdError
from kdkit.tasks.classes import CausalLM, Classification, MultiLabel, TokenClassification
from kdkit.tasks.contract import Task, tensor_of
from kdkit.tasks.ctc import CTC
from kdkit.tasks.numbers import Embedding, Regression

CHANGE = "; say --task if it is something else"


def guess_task(model: nn.Module, batch: Batch) -> Task:
    """The task that a model and a batch most likely stand for; its `why` says what was seen and assumed.

    The names of HF classes decide; otherwise the labels, and the outputs for the first two items.

    Raises:
        KdError: the model can't be called with the batch, or its outputs are not one an item.

    >>> guess_task(nn.Linear(4, 3), Batch((torch.zeros(8, 4),), labels=torch.zeros(8, dtype=torch.long))).why
    'outputs (batch, 3) and integer labels'
    """
    output = try_call(model, batch)
    task, task_why = _by_name(model, batch) or _by_output(model, output, batch)
    task.why = task_why
    return task


def _by_name(model: nn.Module, batch: Batch) -> tuple[Task, str] | None:
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    config, name = getattr(model, "config", None), type(model).__name__
    if config is None:
        return None
    if re.search("ForCausalLM$|LMHeadModel$", name):
        return CausalLM(), f"{name} predicts the next token"
    if re.search("ForMaskedLM$|ForTokenClassification$|ForSemanticSegmentation$", name):
        return TokenClassification(), f"{name} classifies every position"
    if re.search("ForCTC$", name):
        blank = getattr(config, "pad_token_id", None) or 0
        frames = getattr(model, "_get_feat_extract_output_lengths", None)
        return (CTC(blank=blank, frames=frames) if callable(frames) else CTC(blank=blank)), f"{name} spells out frames; its blank is {blank}"
    if not re.search("For(Sequence|Image|Audio|Video)Classification$", name):
        return None
    problem = getattr(config, "problem_type", None)
    if problem == "regression" or (problem is None and getattr(config, "num_labels", None) == 1):
        return Regression(), f"{name} with {'one output' if problem is None else 'problem_type regression'}"
    if problem == "multi_label_classification":
        return MultiLabel(), f"{name} with problem_type {problem}"
    return Classification(), f"{name} classifies items"


def _by_output(model: nn.Module, output: Any, batch: Batch) -> tuple[Task, str]:
    if isinstance(output, Mapping) and "last_hidden_state" in output and "logits" not in output:
        return _embedding(batch)
    found = tensor_of(output)
    if found.shape[:1] != (min(batch.size, 2),):
        raise KdError(
            f"{type(model).__name__} gives {tuple(found.shape)} for {min(batch.size, 2)} items",
            "the first dimension of its outputs must be the items; say --task if that is meant",
        )
    shape = f"outputs ({', '.join(['batch', *map(str, found.shape[1:])])})"
    if isinstance(batch.labels, Tensor):
        return _by_labels(model, found, batch.labels, shape)
    if found.ndim > 2:
        return TokenClassification(), f"{shape} and no labels: taken for scores of classes{CHANGE}"
    if found.shape[1:].numel() == 1:
        return Regression(), f"{shape} and no labels: taken for a number{CHANGE}"
    return _classes(model, found, f"{shape} and no labels: taken for scores of classes{CHANGE}")


def _embedding(batch: Batch) -> tuple[Task, str]:
    classes = isinstance(batch.labels, Tensor) and not batch.labels.is_floating_point()
    return Embedding(metric="neighbour_accuracy" if classes else "cosine"), "the model gives hidden states and has no head"


def _by_labels(model: nn.Module, found: Tensor, labels: Tensor, shape: str) -> tuple[Task, str]:
    two = bool(((labels == 0) | (labels == 1)).all()) and labels.unique().numel() == 2
    alike = labels.shape[1:] == found.shape[1:] and found.ndim == 2 and found.shape[1] > 1
    if alike and bool((labels >= 0).all()) and torch.allclose(labels.double().sum(-1), torch.ones((), dtype=torch.float64), atol=1e-4):
        return _classes(model, found, f"{shape} and labels that are probabilities")
    if alike and two:
        return MultiLabel(), f"{shape} and labels of 0 and 1 for each of them"
    if not labels.is_floating_point():
        return (TokenClassification(), f"{shape} and integer labels") if found.ndim > 2 else _classes(model, found, f"{shape} and integer labels")
    if two and found.shape[1:].numel() == 1:
        return _classes(model, found, f"{shape} and labels of 0 and 1: two classes{CHANGE}")
    return Regression(), f"{shape} and float labels"


def _classes(model: nn.Module, found: Tensor, why: str) -> tuple[Task, str]:
    """Outputs are taken for probabilities where they are none by chance only: they sum to 1, or come from a sigmoid."""
    single = found.shape[1:].numel() == 1
    summed = not single and bool((found >= 0).all()) and torch.allclose(found.double().sum(-1), torch.ones((), dtype=torch.float64), atol=1e-3)
    ready = summed or (single and isinstance(list(model.modules())[-1], nn.Sigmoid))
    return Classification(probabilities=ready), why + (" (the outputs are probabilities already)" if ready else "")
