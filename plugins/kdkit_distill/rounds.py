"""Rounds: several trainings within one stage, each of which tells which one it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdkit.context import Progress
from kdkit.data import Batch
from kdkit.models import evaluating

if TYPE_CHECKING:
    from kdkit.context import Context
    from kdkit.data import Data
    from kdkit.tasks import Task


@dataclass(frozen=True)
class Round:
    """One of several trainings.

    Attributes:
        number: from 1, of `count`.
        name: what it is, for the progress line.
        span: how many of them it stands for, where it consists of several itself.
    """

    number: int
    count: int
    name: str
    span: int = 1

    def of(self, context: Context, heard: Callable[[Progress], None] = lambda progress: None, **changes: Any) -> Context:
        """The context of this training: its progress is that of the whole, its notes and exhibits are its own.

        Args:
            heard: is told each message as it was, before it becomes a part of the whole.
            changes: of the context, such as a seed.
        """

        def observe(progress: Progress) -> None:
            heard(progress)
            one = progress.total / self.span
            done = progress.done + (self.number - 1) * one
            context.observe(replace(progress, done=done, total=self.count * one, text=f"{self.name}: {progress.text}" if progress.text else self.name))

        return replace(context, observe=observe, notes=[], exhibits=[], **changes)


def figure(models: Sequence[nn.Module], task: Task, data: Data) -> float:
    """The task's figure of a model on data; of several, that of the mean of their probabilities.

    >>> from kdkit.tasks import Classification
    >>> data = __import__("kdkit").data.adopt_data((torch.eye(3), torch.arange(3)), 2)
    >>> figure([nn.Identity()], Classification(), data)
    1.0
    """
    return task.evaluate(lambda batch: _answer(models, task, batch), data)[task.metric]


def _answer(models: Sequence[nn.Module], task: Task, batch: Batch) -> Any:
    if len(models) == 1:
        return called(models[0], batch)
    said = torch.stack([task.prediction(called(model, batch), batch).float().log_softmax(-1) for model in models])
    mean = said.logsumexp(0) - torch.log(torch.tensor(float(len(models))))
    return mean.exp() if getattr(task, "probabilities", False) else mean


def called(model: nn.Module, batch: Batch) -> Any:
    """What a model gives for a batch in eval mode, on the CPU."""
    weight = next(model.parameters(), None)
    with evaluating(model):
        output = (batch if weight is None else batch.to(weight.device)).call(model)
    if weight is None or weight.device.type == "cpu":
        return output
    from accelerate.utils import send_to_device

    return output.cpu() if isinstance(output, Tensor) else send_to_device(output, "cpu")


def scored_data(context: Context) -> Data | None:
    """The data that figures are told of: the session's eval data, where it can be scored."""
    data = context.objects.get("eval")
    return data if data is not None and (data.labelled or not context.task.needs_labels) else None
