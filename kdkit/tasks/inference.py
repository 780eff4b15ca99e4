"""Infer the task of a model from its class, the labels and the shape of its outputs."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models.input_preparation import is_encoder_decoder
from kdkit.models.trial_call import try_call
from kdkit.tasks.answers import Answer, choose_answer, main_tensor
from kdkit.tasks.classification import CausalLM, Classification, MultiLabel, TokenClassification
from kdkit.tasks.ctc import CTC
from kdkit.tasks.detection import Detection, dense_head, is_detection, picture_of, targets_of
from kdkit.tasks.regression import Embedding, Regression, scores_of_pairs
from kdkit.tasks.segmentation import Segmentation
from kdkit.tasks.sequence_to_sequence import SequenceToSequence
from kdkit.tasks.task import IGNORED, Task

CHANGE = "; set --task if this is wrong"


def infer_task(model: nn.Module, batch: Batch, place: str = "") -> Task:
    """Infer the most likely task of a model from a batch; its `reason` states what was observed and assumed.

    The name of an HF class decides; for other models, the labels and the outputs for the first two items.

    Args:
        place: which of several outputs is the answer, by number or name; default: found by the labels, and stated in `remark`.

    Raises:
        KdError: the model can't be called with the batch, or does not return one output per item.

    >>> infer_task(nn.Linear(4, 3), Batch((torch.zeros(8, 4),), labels=torch.zeros(8, dtype=torch.long))).reason
    'outputs (batch, 3) and integer labels'
    """
    output = try_call(model, batch, graph=True)
    if is_detection(output):
        detection = _detection(model, batch, output, Detection())
        detection.reason = f"outputs are boxes with classes, as {'centres and sizes' if detection.form == 'cxcywh' else 'corners'}{CHANGE}"
        return detection
    answer = choose_answer(output, batch.labels if place == "" else None)
    chosen = place or answer.place
    task, task_why = _by_name(model, batch) or _by_output(model, output, batch, chosen)
    task.reason, task.output, task.remark = task_why, chosen, "" if place else answer.reason
    return task


def _detection(model: nn.Module, batch: Batch, output: Any, given: Detection) -> Detection:
    """A detection task with what it leaves open taken from the model."""
    task = copy.copy(given)
    task.form = given.form or _form(output)
    head = dense_head(output)
    task.loss_from_model = head is None and bool(targets_of(model))
    if task.sets is None and head is not None:
        task.sets = _is_set(model, batch, head[0].shape[1])
    return task


def _form(output: Any) -> Literal["xyxy", "cxcywh"]:
    """The form of boxes in a model's output: models that name them `pred_boxes` give centres and sizes, as DETR does."""
    return "cxcywh" if isinstance(output, Mapping) and "pred_boxes" in output else "xyxy"


def _is_set(model: nn.Module, batch: Batch, places: int) -> bool:
    """Whether a dense head has as many places for a larger picture, as queries are; also of a model that takes pictures of one size only."""
    picture = picture_of(batch)
    if picture is None:
        return True
    height, width = picture.shape[-2:]

    def larger(tensor: Any) -> Any:
        of_picture = isinstance(tensor, Tensor) and tensor.ndim > 2 and tensor.shape[-2:] == (height, width)
        return F.pad(tensor, (0, width // 2 + 1, 0, height // 2 + 1)) if of_picture else tensor

    some = batch[:1]
    try:
        head = dense_head(try_call(model, Batch(tuple(map(larger, some.args)), {name: larger(each) for name, each in some.kwargs.items()})))
    except KdError:
        return True
    return head is not None and head[0].shape[1] == places


def with_answer(task: Task, model: nn.Module, batch: Batch, place: str = "") -> Task:
    """A task that evaluates one of a model's outputs: a copy if the task did not say which.

    Args:
        place: as for `infer_task`.

    Raises:
        KdError: the model can't be called with the batch, or has no output at that place.
    """
    output = try_call(model, batch, graph=True)
    if place:
        main_tensor(output, place=place)
        return _evaluating(task, Answer(place))
    if isinstance(task, Detection):
        return _detection(model, batch, output, task)
    if task.output or task.predicts == "boxes" or not type(task).prediction.__module__.startswith("kdkit.tasks."):
        return task
    answer = choose_answer(output, batch.labels)
    return _evaluating(task, answer) if answer.place else task


def _evaluating(task: Task, answer: Answer) -> Task:
    made = copy.copy(task)
    made.output, made.remark = answer.place, answer.reason
    return made


def predicts_next_token(model: nn.Module) -> bool:
    """Whether a model is a causal language model of transformers, by the name of its class."""
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    return getattr(model, "config", None) is not None and bool(re.search("ForCausalLM$|LMHeadModel$", type(model).__name__))


def _by_name(model: nn.Module, batch: Batch) -> tuple[Task, str] | None:
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    config, name = getattr(model, "config", None), type(model).__name__
    if config is None:
        return None
    if predicts_next_token(model):
        return CausalLM(), f"{name} predicts the next token"
    if is_encoder_decoder(model):
        return SequenceToSequence(), f"{name} generates a sequence from a sequence"
    if re.search("ForSemanticSegmentation$", name):
        ignored = getattr(config, "semantic_loss_ignore_index", None)
        return Segmentation(ignore_index=IGNORED if ignored is None else ignored), f"{name} classifies every pixel{'' if ignored is None else IGNORES.format(ignored)}"
    if re.search("ForMaskedLM$|ForTokenClassification$", name):
        return TokenClassification(), f"{name} classifies every position"
    if re.search("ForCTC$", name):
        blank = getattr(config, "pad_token_id", None) or 0
        frames = getattr(model, "_get_feat_extract_output_lengths", None)
        return (CTC(blank=blank, frames=frames) if callable(frames) else CTC(blank=blank)), f"{name} labels frames; its blank is {blank}"
    if not re.search("For(Sequence|Image|Audio|Video)Classification$", name):
        return None
    problem = getattr(config, "problem_type", None)
    if problem == "regression" or (problem is None and getattr(config, "num_labels", None) == 1):
        return Regression(), f"{name} with {'one output' if problem is None else 'problem_type regression'}"
    if problem == "multi_label_classification":
        return MultiLabel(), f"{name} with problem_type {problem}"
    return Classification(), f"{name} classifies items"


def _by_output(model: nn.Module, output: Any, batch: Batch, place: str) -> tuple[Task, str]:
    if isinstance(output, Mapping) and "last_hidden_state" in output and "logits" not in output:
        return _embedding(batch)
    found = main_tensor(output, place=place)
    if found.shape[:1] != (min(batch.size, 2),):
        raise KdError(
            f"{type(model).__name__} returns {tuple(found.shape)} for {min(batch.size, 2)} items",
            "the first dimension of its outputs must be the items; set --task if this is intended, or --output for another output",
        )
    shape = f"outputs ({', '.join(['batch', *map(str, found.shape[1:])])})"
    if isinstance(batch.labels, Tensor):
        return _by_labels(model, found, batch.labels, shape)
    if found.ndim > 2:
        kind = Segmentation() if found.ndim > 3 else TokenClassification()
        return kind, f"{shape} and no labels: assumed to be class scores{CHANGE}"
    if found.shape[1:].numel() == 1:
        return Regression(), f"{shape} and no labels: assumed to be a number{CHANGE}"
    return _classes(model, found, f"{shape} and no labels: assumed to be class scores{CHANGE}")


def _embedding(batch: Batch) -> tuple[Task, str]:
    labels = batch.labels
    metric = "cosine" if not isinstance(labels, Tensor) else "spearman" if scores_of_pairs(labels) else "cosine" if labels.is_floating_point() else "neighbour_accuracy"
    return Embedding(metric=metric), "the model returns hidden states and has no head"


def _by_labels(model: nn.Module, found: Tensor, labels: Tensor, shape: str) -> tuple[Task, str]:
    binary = bool(((labels == 0) | (labels == 1)).all())
    two = binary and labels.unique().numel() == 2
    alike = labels.shape[1:] == found.shape[1:] and found.ndim not in (1, 3) and found.shape[1] > 1
    if alike and bool((labels >= 0).all()) and torch.allclose(labels.double().sum(1), torch.ones((), dtype=torch.float64), atol=1e-4):
        return _places(found, Segmentation(), model, f"{shape} and labels that are probabilities")
    if alike and two:
        ready = _is_sigmoid(model, found)
        return MultiLabel(probabilities=ready), f"{shape} and labels of 0 and 1 for each of them{READY if ready else ''}"
    if scores_of_pairs(labels) and found.ndim == 2 and found.shape[1] > 1 and _is_pairs(labels):
        return Embedding(metric="spearman"), f"{shape} and one score for every two items"
    if not labels.is_floating_point():
        pixels = found.ndim > 3 or labels.ndim > 2
        return _places(found, Segmentation() if pixels else TokenClassification(), model, f"{shape} and integer labels", labels)
    # a mask may be all background
    mask = found.ndim > 2 and bool(((labels == 0) | (labels == 1) | (labels == VOID)).all())
    if mask and labels.shape[1:].numel() * _channels(found, labels) == found.shape[1:].numel():
        return _places(found, Segmentation(), model, f"{shape} and masks of 0 and 1: two classes per pixel{CHANGE}", labels)
    if two and found.shape[1:].numel() == 1:
        return _classes(model, found, f"{shape} and labels of 0 and 1: two classes{CHANGE}")
    return Regression(), f"{shape} and float labels"


VOID = 255
"""The label of pixels without a class in many data sets of masks, such as VOC's and Cityscapes'."""

IGNORES = "; labels of {} are ignored"

READY = " (the outputs are probabilities already)"


def _channels(found: Tensor, labels: Tensor) -> int:
    """The channels of a map whose labels are one mask: one for a logit, two for the scores of both classes."""
    return 2 if found.shape[1] == 2 and labels.shape[1:].numel() != found.shape[1:].numel() else 1


def _is_pairs(labels: Tensor) -> bool:
    return len(labels) > 1 and len(labels) % 2 == 0 and torch.equal(labels[::2], labels[1::2])


def _places(found: Tensor, kind: Segmentation | TokenClassification, model: nn.Module, why: str, labels: Tensor | None = None) -> tuple[Task, str]:
    """The task of one class per place; of one class per item if there are no places."""
    if found.ndim < 3:
        return _classes(model, found, why)
    dimension = 1 if isinstance(kind, Segmentation) and found.ndim > 3 else -1
    kind.probabilities = _sums_to_one(found, dimension) if found.shape[dimension] > 1 else _is_sigmoid(model, found)
    if isinstance(kind, Segmentation) and labels is not None and _has_void(labels, max(2, found.shape[dimension])):
        kind.ignore_index = VOID
        why = f"{why.removesuffix(CHANGE)}{IGNORES.format(VOID)}{CHANGE}"
    return kind, why + (READY if kind.probabilities else "")


def _has_void(labels: Tensor, classes: int) -> bool:
    """Whether the only label beyond the classes is 255, beside a class from 1 on; in masks of 0 and 255 it may be the foreground."""
    values = labels.unique()
    return classes <= VOID and bool((values == VOID).any()) and bool(((values < classes) | (values == VOID)).all()) and bool(((values > 0) & (values < classes)).any())


def _classes(model: nn.Module, found: Tensor, why: str) -> tuple[Task, str]:
    """Classification; outputs that sum to 1 or come from a sigmoid are assumed to be probabilities."""
    single = found.shape[1:].numel() == 1
    summed = not single and _sums_to_one(found, -1)
    ready = summed or (single and _is_sigmoid(model, found))
    return Classification(probabilities=ready), why + (READY if ready else "")


_LINEAR = ("Addmm", "Mm", "Bmm", "Convolution", "Linear")
"""The starts of the names of graph nodes whose results are never probabilities."""


def _sums_to_one(found: Tensor, dimension: int) -> bool:
    """Whether outputs are distributions: they are at least 0 and sum to 1, and no linear layer made them."""
    if type(found.grad_fn).__name__.startswith(_LINEAR):
        return False
    return bool((found >= 0).all()) and torch.allclose(found.double().sum(dimension), torch.ones((), dtype=torch.float64), atol=1e-3)


def _is_sigmoid(model: nn.Module, found: Tensor) -> bool:
    """Whether a sigmoid made an output: the model's last module, or the last operation of its graph."""
    return isinstance(list(model.modules())[-1], nn.Sigmoid) or "Sigmoid" in type(found.grad_fn).__name__.replace("LogSigmoid", "")
