"""Evaluation: the task's metric for a student, a teacher, or several models as an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdkit import Batch
from kdkit.models import evaluating

if TYPE_CHECKING:
    from kdkit import Context, Data, Task


def scored_data(context: Context) -> Data | None:
    """The session's eval data; None if the task can't score it."""
    data = context.objects.get("eval")
    return data if data is not None and (data.labelled or not context.task.needs_labels) else None


def figure(models: Sequence[nn.Module], data: Data, context: Context) -> float:
    """The task's metric for a model on data; for several models, the metric of their mean probabilities.

    Raises:
        Cancelled: the user asked to stop.

    >>> from kdkit import Context, adopt_data
    >>> from kdkit.tasks import Classification
    >>> figure([nn.Identity()], adopt_data((torch.eye(3), torch.arange(3)), 2), Context(Classification()))
    1.0
    """

    def answer(batch: Batch) -> Any:
        context.check_cancelled()
        return _answer(models, context.task, batch)

    return context.task.evaluate(answer, data)[context.task.metric]


def best(figures: Sequence[float], better: str) -> int:
    """The index of the best figure; the first one if several are equal.

    >>> best([0.1, 0.3, 0.2], "higher"), best([2.0, 1.0, 1.0], "lower")
    (1, 1)
    """
    return (max if better == "higher" else min)(range(len(figures)), key=figures.__getitem__)


def _answer(models: Sequence[nn.Module], task: Task, batch: Batch) -> Any:
    if len(models) == 1:
        return called(models[0], batch)
    predicted = torch.stack([task.prediction(called(model, batch), batch).float().log_softmax(-1) for model in models])
    mean = predicted.logsumexp(0) - torch.log(torch.tensor(float(len(models))))
    return mean.exp() if getattr(task, "probabilities", False) else mean


def called(model: nn.Module, batch: Batch) -> Any:
    """A model's output for a batch in eval mode, on the CPU."""
    weight = next(model.parameters(), None)
    with evaluating(model):
        output = (batch if weight is None else batch.to(weight.device)).call(model)
    if weight is None or weight.device.type == "cpu":
        return output
    from accelerate.utils import send_to_device

    return output.cpu() if isinstance(output, Tensor) else send_to_device(output, "cpu")
