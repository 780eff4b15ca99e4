"""A loss and a metric of the user's own, put on any task."""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data import Batch, Data
from kdkit.errors import KdError
from kdkit.tasks.contract import Call, Task, kept, wide


def given(task: Task, loss: Callable | None, metric: Callable | None, better: str = "") -> Task:
    """The same task with another loss, another metric, or both; still an instance of its class."""
    made = copy.copy(task)
    made.__class__ = type(f"Given{type(task).__name__}", (Given, type(task)), {})
    made.given_loss, made.given_metric = per_item(loss) if loss is not None else None, metric  # type: ignore[attr-defined]
    if metric is not None:
        made.metric, made.better = called(metric), better or better_of(metric)
    return made


class Given(Task):
    """What `given` puts before a task's own class."""

    given_loss: Callable[[Tensor, Any], Tensor] | None
    given_metric: Callable | None

    def losses(self, output: Any, batch: Batch) -> Tensor:
        if self.given_loss is None:
            return super().losses(output, batch)
        prediction = wide(self.prediction(output, batch))
        return self.given_loss(prediction, each_label(lambda labels: labels.to(prediction.device), self._labels(batch)))

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        if self.given_loss is None:
            return super().scores(output, batch)
        own = {} if self.given_metric else super().scores(output, batch)
        return own | {"given loss": self.losses(output, batch)}

    def summary(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        own = {name: mean for name, mean in means.items() if name != "given loss"}
        loss = {"loss": float(means["given loss"])} if "given loss" in means else {}
        return (super().summary(own) if own else {}) | loss

    def evaluate(self, call: Call, data: Data) -> dict[str, float]:
        if self.given_metric is None:
            return super().evaluate(call, data)
        predictions, labels = [], []

        def watched(batch: Batch) -> Any:
            output, counted = call(batch), self.labelled(batch)
            predictions.append(kept(self.prediction(output, batch), counted).cpu())
            labels.append(each_label(lambda part: kept(part, counted).cpu(), self._labels(batch)))
            return output

        figures = super().evaluate(watched, data)
        whole = tuple(map(torch.cat, zip(*labels, strict=True))) if isinstance(labels[0], tuple) else torch.cat(labels)
        return {self.metric: judged(self.given_metric, self, torch.cat(predictions), whole)} | figures

    def _labels(self, batch: Batch) -> Any:
        return batch.labels if isinstance(batch.labels, tuple) else self.labels(batch)


def each_label(change: Callable[[Tensor], Tensor], labels: Any) -> Any:
    """`change` of a label tensor, or of each of a tuple."""
    return tuple(map(change, labels)) if isinstance(labels, tuple) else change(labels)


def per_item(loss: Callable) -> Callable[[Tensor, Any], Tensor]:
    """The loss unreduced: torch's own with `reduction="none"`, others as they are; a single number stands for each item.

    >>> per_item(nn.MSELoss())(torch.ones(2, 3), torch.zeros(2, 3))
    tensor([1., 1.])
    """
    name = called(loss)
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        loss = copy.copy(loss)
        vars(loss)["reduction"] = "none"
    elif not isinstance(loss, nn.Module) and "reduction" in _parameters(loss):
        loss = functools.partial(loss, reduction="none")

    def each(prediction: Tensor, labels: Any) -> Tensor:
        if isinstance(labels, Tensor) and labels.is_floating_point() and prediction.shape == (*labels.shape, 1):
            labels = labels[..., None]
        values = loss(prediction, labels)
        if not isinstance(values, Tensor):
            raise KdError(f"the loss {name} gave {type(values).__name__}, not a tensor", "return a tensor, one number an item: (batch,)")
        if values.ndim == 0:
            return values.expand(len(prediction))
        if len(values) != len(prediction):
            raise KdError(f"the loss {name} gave {tuple(values.shape)} for {len(prediction)} items", "return one number an item, (batch,), or one for all")
        return values if values.shape == prediction.shape[:-1] else values.flatten(1).mean(-1) if values.ndim > 1 else values

    return each


def judged(metric: Callable, task: Task, predictions: Tensor, labels: Any) -> float:
    """The user's metric of a whole set.

    Raises:
        KdError: it is not a number.
    """
    names = _parameters(metric)
    if "y_true" in names and isinstance(labels, Tensor):
        said = {"y_pred": task.decision(predictions)} if "y_pred" in names else {"y_score": _shares(task, predictions)}
        value = metric(y_true=labels.numpy(), **{name: tensor.numpy() for name, tensor in said.items()})
    else:
        value = metric(predictions, labels)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise KdError(f"the metric {called(metric)} gave {type(value).__name__}, not a number", "return one number for the whole set") from error


def _shares(task: Task, predictions: Tensor) -> Tensor:
    """Scores as scikit-learn wants them: probabilities of classes, of the second alone where there are two."""
    if not hasattr(task, "probabilities"):
        return predictions
    shares = wide(predictions).softmax(-1)
    return shares[:, 1] if shares.shape[-1] == 2 else shares


def _parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # functions written in C tell nothing of themselves
        return {}


def called(function: Callable) -> str:
    """The name of a user's function or object, as figures show it.

    >>> called(functools.partial(nn.functional.mse_loss, reduction="sum"))
    'mse_loss'
    """
    function = function.func if isinstance(function, functools.partial) else function
    return getattr(function, "__name__", type(function).__name__).strip("<>")


LOWER = {"loss", "error", "err", "mse", "mae", "rmse", "mape", "perplexity", "ppl", "wer", "cer", "distance", "deviance", "divergence", "nll", "brier", "unalignable"}
"""Words in a metric's name that say that less is better."""


def better_of(metric: Callable) -> str:
    """Which way a metric is better: its attribute `better`, else by the words in its name.

    >>> def word_error_rate(predictions, labels): ...
    >>> better_of(word_error_rate)
    'lower'
    """
    said = getattr(metric, "better", None)
    if said in ("higher", "lower"):
        return said
    words = re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", called(metric)).lower())
    return "lower" if LOWER & set(words) and words[:1] != ["neg"] else "higher"
