"""Validation: which epoch is the best, and when to stop early."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from kdkit.data import Batch, Data
from kdkit.errors import KdError
from kdkit.models.evaluation import evaluating
from kdkit.training.checkpoint import restore, snapshot

if TYPE_CHECKING:
    import torch

    from kdkit.stages.context import Context
    from kdkit.training.options import LoopOptions


def validation_data(options: LoopOptions, context: Context) -> Data | None:
    """The validation data, if the stage names any.

    Raises:
        KdError: it is the session's evaluation data, or an option needs validation data and none is named.
    """
    problems = list(options.conflicts())
    if problems:
        raise KdError(problems[0], *problems[1:])
    if options.validation is None:
        return None
    data = context.data(options.validation)
    if options.validation == "eval" or data is context.objects.get("eval"):
        raise KdError(
            f"--validation {options.validation} is the data the session tests on; an epoch chosen by it would flatter the result",
            "hold some training data back: --validation {held_out_loader}",
        )
    return data


class EarlyStopping:
    """Evaluates the model after each epoch, and keeps the weights of the best one.

    Attributes:
        best: the weights of the best epoch so far, with --keep best.
        stopped: whether --patience epochs passed without a better one.
    """

    def __init__(self, options: LoopOptions, context: Context, data: Data, device: torch.device):
        self.options, self.context, self.data, self.device = options, context, data, device
        self.figure, self.epoch, self.waited, self.stopped = math.nan, 0, 0, False
        self.best: dict[str, Tensor] = {}

    def validate(self, epoch: int, model: nn.Module) -> dict[str, float]:
        """Evaluate the model after an epoch; return the figure by its name."""
        task = self.context.task
        with evaluating(model):
            figures = task.evaluate(lambda batch: self._call(model, batch), self.data)
        if task.metric not in figures:
            raise KdError(f"--validation {self.options.validation} gives no {task.metric} to choose by", "give validation data with labels")
        figure = figures[task.metric]
        if self._better(figure):
            self.figure, self.epoch, self.waited = figure, epoch, 0
            if self.options.keep == "best":
                self.best = snapshot(model)
        else:
            self.waited += 1
        self.stopped = self.options.patience is not None and self.waited >= self.options.patience
        return {f"validation_{task.metric}": figure}

    def _call(self, model: nn.Module, batch: Batch) -> Any:
        self.context.check_cancelled()
        output = batch.to(self.device).call(model)
        if self.device.type == "cpu":
            return output
        from accelerate.utils import send_to_device

        return send_to_device(output, "cpu")

    def _better(self, figure: float) -> bool:
        if math.isnan(figure) or math.isnan(self.figure):
            return not math.isnan(figure)
        return figure > self.figure if self.context.task.better == "higher" else figure < self.figure

    def finish(self, model: nn.Module) -> None:
        """Restore the best epoch's weights, with --keep best, and note which epoch was chosen."""
        metric = self.context.task.metric
        if self.options.keep == "best" and self.best:
            restore(model, self.best)
            self.context.note(f"kept epoch {self.epoch}: {metric} {self.figure:.4g} on {self.options.validation}")
        elif self.epoch:
            self.context.note(f"best epoch {self.epoch}: {metric} {self.figure:.4g} on {self.options.validation}; kept the last")

    def state(self) -> dict[str, Any]:
        """The plain data of a checkpoint; `best` is its tensors."""
        return {"figure": None if math.isnan(self.figure) else self.figure, "epoch": self.epoch, "waited": self.waited, "stopped": self.stopped}

    def load(self, state: dict[str, Any], best: dict[str, Tensor]) -> None:
        """Continue from a checkpoint."""
        self.figure = math.nan if state["figure"] is None else state["figure"]
        self.epoch, self.waited, self.stopped, self.best = state["epoch"], state["waited"], state["stopped"], best
