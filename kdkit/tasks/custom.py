"""A task with the user's loss and metric."""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from kdkit.data import Batch, Data
from kdkit.errors import KdError
from kdkit.guards.error_location import describe_error
from kdkit.tasks.task import IGNORED, Call, Task, at_least_float32, masked


def custom_task(task: Task, loss: Callable | None, metric: Callable | None, better: str = "") -> Task:
    """A copy of a task with another loss, another metric, or both; still an instance of the task's class."""
    made = copy.copy(task)
    made.__class__ = type(f"Custom{type(task).__name__}", (CustomTask, type(task)), {})
    criterion = None if loss is None else Criterion.of(loss)
    made.criterion, made.custom_metric = criterion, metric  # type: ignore[attr-defined]
    if criterion is not None and criterion.ignore_index not in (None, IGNORED) and hasattr(made, "ignore_index"):
        made.ignore_index = criterion.ignore_index
    if metric is not None:
        made.metric, made.better = called(metric), better or better_of(metric)
    return made


class CustomTask(Task):
    """The base that `custom_task` adds to a task's own class."""

    criterion: Criterion | None
    custom_metric: Callable | None

    def losses(self, output: Any, batch: Batch) -> Tensor:
        if self.criterion is None:
            return super().losses(output, batch)
        answer, labels = (
            self.criterion_arguments(output, batch) if isinstance(batch.labels, Tensor) or batch.labels is None else (self.prediction(output, batch), batch.labels)
        )
        labels = each_label(lambda part: part.to(answer.device), labels)
        values = self.criterion.values(output if self.criterion.of_output else at_least_float32(answer), labels)
        counted = self.labelled(batch)
        return fitted(values, torch.Size((batch.size,)) if counted is None else counted.shape, self.criterion.name)

    def loss_weights(self, batch: Batch) -> Tensor | None:
        """The class weight of each element's label, of the shape of `losses`; None without class weights."""
        weights = None if self.criterion is None else self.criterion.class_weights
        if weights is None or not isinstance(batch.labels, Tensor):
            return None
        labels, counted = self.labels(batch), self.labelled(batch)
        if labels.is_floating_point() or counted is None:
            return None
        # labels beyond the classes are refused by the loss itself
        return weights.to(labels.device)[labels.clamp(0, len(weights) - 1)].view(counted.shape)

    def divisor(self, batch: Batch) -> float:
        weights = self.loss_weights(batch)
        return super().divisor(batch) if weights is None else float(masked(weights, self.labelled(batch)).sum())

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        if self.criterion is None:
            return super().scores(output, batch)
        own = {} if self.custom_metric else super().scores(output, batch)
        weights = self.loss_weights(batch)
        return own | {"custom loss": self.losses(output, batch)} | ({} if weights is None else {"custom weight": weights})

    def summary(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        own = {name: mean for name, mean in means.items() if not name.startswith("custom ")}
        loss = {"loss": float(means["custom loss"] / means.get("custom weight", 1))} if "custom loss" in means else {}
        return (super().summary(own) if own else {}) | loss

    def evaluate(self, call: Call, data: Data) -> dict[str, float]:
        if self.custom_metric is None:
            return super().evaluate(call, data)
        predictions, labels = [], []
        of_output = takes_output(self.custom_metric)

        def watched(batch: Batch) -> Any:
            output, counted = call(batch), self.labelled(batch)
            predictions.append(tree_map(in_memory, output) if of_output else masked(self.prediction(output, batch), counted).cpu())
            labels.append(each_label(lambda part: masked(part, counted).cpu(), self._labels(batch)))
            return output

        figures = super().evaluate(watched, data)
        whole = tuple(map(joined, zip(*labels, strict=True))) if isinstance(labels[0], tuple) else joined(labels)
        return {self.metric: metric_value(self.custom_metric, self, tree_map(lambda *parts: joined(parts), *predictions), whole)} | figures

    def _labels(self, batch: Batch) -> Any:
        return batch.labels if isinstance(batch.labels, tuple) else self.labels(batch)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Tensors of several batches as one; where batches have different lengths, as of true boxes, they are filled up with -100.

    >>> joined([torch.zeros(1, 1), torch.ones(1, 2)])
    tensor([[   0., -100.],
            [   1.,    1.]])
    """
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) == 1 or len(set(map(len, shapes))) > 1:
        return torch.cat(list(parts))
    largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
    missing = [[size for length, most in zip(reversed(part.shape[1:]), reversed(largest), strict=True) for size in (0, most - length)] for part in parts]
    return torch.cat([F.pad(part, sizes, value=IGNORED) for part, sizes in zip(parts, missing, strict=True)])


def in_memory(value: Any) -> Any:
    """A tensor of an output, detached and on the CPU; other values unchanged."""
    return value.detach().cpu() if isinstance(value, Tensor) else value


WHOLE_OUTPUT = ("output", "outputs", "out", "model_output")
"""Names of a first parameter that takes the model's own output."""


def takes_output(function: Callable) -> bool:
    """Whether a user's loss or metric takes the model's own output, such as a dictionary: its first parameter is named `output`.

    >>> takes_output(lambda output, labels: output["boxes"].mean()), takes_output(nn.functional.cross_entropy)
    (True, False)
    """
    function = function.forward if isinstance(function, nn.Module) else function
    return next(iter(_parameters(function)), "") in WHOLE_OUTPUT


def call_users(kind: str, function: Callable, name: str, prediction: Any, labels: Any) -> Any:
    """Call a user's loss or metric; its failure becomes a message that says what it received.

    Raises:
        KdError: the function failed.

    >>> call_users("loss", lambda output, labels: output["boxes"].mean() - labels, "mine", {"boxes": torch.ones(2, 4)}, torch.ones(2))
    tensor([0., 0.])
    """
    try:
        return function(prediction, labels)
    except KdError:
        raise
    except Exception as error:
        whole = () if takes_output(function) else ("it receives the model's complete output if you name its first parameter `output`",)
        place = describe_error(error, getattr(function, "__module__", None) or "")
        raise KdError(f"the {kind} {name} failed: {place}", f"it received {_shapes(prediction)} and labels {_shapes(labels)}", *whole) from error


def _shapes(value: Any) -> str:
    """What a value holds, by its shapes: "(2, 3)" or "{logits: (2, 3)}"."""
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_shapes(part)}" for name, part in value.items()) + "}"
    return "(" + ", ".join(map(_shapes, value)) + ")" if isinstance(value, (tuple, list)) else type(value).__name__


def each_label(change: Callable[[Tensor], Tensor], labels: Any) -> Any:
    """Apply `change` to a label tensor, or to each tensor of a tuple."""
    return tuple(map(change, labels)) if isinstance(labels, tuple) else change(labels)


@dataclass(frozen=True)
class Criterion:
    """A loss without reduction: losses of torch with `reduction="none"`, others unchanged.

    It is called with the prediction of the task, such as the logits; a loss whose first parameter is named `output` gets the model's
    own output, such as a dictionary.

    Attributes:
        function: (prediction, labels) -> values.
        name: of the user's loss, for messages.
        class_weights: of a cross entropy, (classes,): torch's mean is the sum of the values over the sum of their labels' weights.
        ignore_index: the label that a cross entropy ignores.
        kind: what labels a loss of torch takes, "classes" or "binary".
        of_output: it is called with the model's own output.

    >>> Criterion.of(nn.MSELoss()).values(torch.ones(2, 3), torch.zeros(2, 3)).shape
    torch.Size([2, 3])
    """

    function: Callable
    name: str
    class_weights: Tensor | None = None
    ignore_index: int | None = None
    kind: str = ""
    of_output: bool = False

    @classmethod
    def of(cls, loss: Callable) -> Criterion:
        """The criterion of a user's loss, which itself is left as it is."""
        name, kind = called(loss), _kind(loss)
        options = vars(loss) | dict(getattr(loss, "_buffers", {})) if isinstance(loss, nn.Module) else getattr(loss, "keywords", {})
        weights, ignored = (options.get("weight"), options.get("ignore_index", IGNORED)) if kind == "classes" else (None, None)
        if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
            loss = copy.copy(loss)
            vars(loss)["reduction"] = "none"
            if kind == "classes":
                vars(loss)["ignore_index"] = IGNORED
        elif not isinstance(loss, nn.Module) and "reduction" in _parameters(loss):
            loss = functools.partial(loss, reduction="none", **({"ignore_index": IGNORED} if kind == "classes" else {}))
        return cls(loss, name, weights, ignored, kind, of_output=not kind and takes_output(loss))

    def values(self, prediction: Any, labels: Any) -> Tensor:
        """The loss of a batch: one value per element or item, or one number.

        Args:
            prediction: as the model returned it, such as (batch, classes), (batch, tokens, classes) or (batch, classes, height, width); the
                model's own output if `of_output`.
            labels: of the batch.

        Raises:
            KdError: the loss fails or does not return a tensor.
        """
        if isinstance(labels, Tensor) and self.kind == "classes" and not labels.is_floating_point():
            prediction, labels = _classes_second(prediction, labels)
        elif isinstance(labels, Tensor) and self.kind == "binary" and labels.numel() == prediction.numel():
            labels = labels.to(prediction.dtype).view(prediction.shape)
        elif not self.of_output and isinstance(labels, Tensor) and labels.is_floating_point() and prediction.shape == (*labels.shape, 1):
            labels = labels[..., None]
        values = call_users("loss", self.function, self.name, prediction, labels)
        if not isinstance(values, Tensor):
            raise KdError(f"the loss {self.name} gave {type(values).__name__}, not a tensor", "return a tensor with one number per item: (batch,)")
        return values


_OF_CLASSES, _BINARY = (nn.CrossEntropyLoss, nn.NLLLoss), (nn.BCEWithLogitsLoss, nn.BCELoss)


def _kind(loss: Callable) -> str:
    """What labels a loss of torch takes: "classes", "binary"; empty for other losses."""
    function = loss.func if isinstance(loss, functools.partial) else loss
    if isinstance(function, _OF_CLASSES) or function in (F.cross_entropy, F.nll_loss):
        return "classes"
    return "binary" if isinstance(function, _BINARY) or function in (F.binary_cross_entropy_with_logits, F.binary_cross_entropy) else ""


def _classes_second(prediction: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Scores with the classes in the second dimension, as losses of torch take them, and labels of the other dimensions."""
    if prediction.shape[:1] + prediction.shape[2:] == labels.shape:
        return prediction, labels
    if prediction.shape[:-1] == labels.shape:
        return prediction.movedim(-1, 1), labels
    places = prediction.shape[:1] + prediction.shape[2:]
    return (prediction, labels.reshape(places)) if labels.numel() == places.numel() else (prediction, labels)


def fitted(values: Tensor, shape: torch.Size, name: str) -> Tensor:
    """Values of a loss with the shape of a task's losses; one number stands for each element, several of an item for their mean.

    Args:
        shape: (batch,) or (batch, tokens).
        name: of the loss, for messages.

    Raises:
        KdError: there is neither one number nor one per item.

    >>> fitted(torch.tensor([[1.0, 3.0], [5.0, 5.0]]), torch.Size([2]), "mine")
    tensor([2., 5.])
    """
    if values.ndim == 0:
        return values.expand(shape)
    if values.numel() == shape.numel():
        return values.reshape(shape)
    if len(values) != shape[0]:
        raise KdError(f"the loss {name} gave {tuple(values.shape)} for {shape[0]} items", "return one number per item, (batch,), or one for all")
    items = values.flatten(1).mean(-1) if values.ndim > 1 else values
    return items if len(shape) == 1 else items[:, None].expand(shape)


def metric_value(metric: Callable, task: Task, predictions: Tensor, labels: Any) -> float:
    """The user's metric of a complete data set.

    Raises:
        KdError: the metric fails or is not a number.
    """
    names = _parameters(metric)
    if "y_true" in names and isinstance(labels, Tensor):
        predicted = {"y_pred": task.decision(predictions)} if "y_pred" in names else {"y_score": _shares(task, predictions)}
        value = metric(y_true=labels.numpy(), **{name: tensor.numpy() for name, tensor in predicted.items()})
    else:
        value = call_users("metric", metric, called(metric), predictions, labels)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise KdError(f"the metric {called(metric)} gave {type(value).__name__}, not a number", "return one number for the complete data set") from error


def _shares(task: Task, predictions: Tensor) -> Tensor:
    """Scores as scikit-learn expects them: probabilities of the classes; for two classes, only the second."""
    if not hasattr(task, "probabilities"):
        return predictions
    shares = at_least_float32(predictions).softmax(-1)
    return shares[:, 1] if shares.shape[-1] == 2 else shares


def _parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some functions written in C have no signature
        return {}


def called(function: Callable) -> str:
    """The name of a user's function or object, for figures and messages.

    >>> called(functools.partial(nn.functional.mse_loss, reduction="sum"))
    'mse_loss'
    """
    function = function.func if isinstance(function, functools.partial) else function
    return getattr(function, "__name__", type(function).__name__).strip("<>")


LOWER = {"loss", "error", "err", "mse", "mae", "rmse", "mape", "perplexity", "ppl", "wer", "cer", "distance", "deviance", "divergence", "nll", "brier", "unalignable"}
"""Words in a metric's name which mean that lower is better."""


def better_of(metric: Callable) -> str:
    """Whether "higher" or "lower" values of a metric are better: its attribute `better`; default: from the words in its name.

    >>> def word_error_rate(predictions, labels): ...
    >>> better_of(word_error_rate)
    'lower'
    """
    stated = getattr(metric, "better", None)
    if stated in ("higher", "lower"):
        return stated
    words = re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", called(metric)).lower())
    return "lower" if LOWER & set(words) and words[:1] != ["neg"] else "higher"
