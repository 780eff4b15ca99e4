"""Validation: which epoch is the best, and when to stop."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from kdkit.data import Batch, Data
from kdkit.errors import KdError
from kdkit.models import evaluating
from kdkit.training.checkpoint import restore, snapshot

if TYPE_CHECKING:
    import torch

    from kdkit.context import Context
    from kdkit.contract import TrainStage


def validation_data(stage: TrainStage, context: Context) -> Data | None:
    """The data to choose by, if the stage names any.

    Raises:
        KdError: it is the data that the session tests on, or options want validation and none is named.
    """
    problems = list(stage.conflicts())
    if problems:
        raise KdError(problems[0], *problems[1:])
    if stage.validation is None:
        return None
    data = context.data(stage.validation)
    if stage.validation == "eval" or data is context.objects.get("eval"):
        raise KdError(
            f"--validation {stage.validation} is the data the session tests on; an epoch chosen by it would flatter the result",
            "hold some training data back: --validation {held_out_loader}",
        )
    return data


class Judge:
    """Looks at the model after each epoch, and remembers the best.

    Attributes:
        best: the weights of the best epoch so far, if they are to be kept.
        stopped: no epoch was better for as long as the stage's patience.
    """

    def __init__(self, stage: TrainStage, context: Context, data: Data, device: torch.device):
        self.stage, self.context, self.data, self.device = stage, context, data, device
        self.figure, self.epoch, self.waited, self.stopped = math.nan, 0, 0, False
        self.best: dict[str, Tensor] = {}

    def judge(self, epoch: int, model: nn.Module) -> dict[str, float]:
        """Evaluate the model as it is after an epoch; return the figure by its name."""
        task = self.context.task
        with evaluating(model):
            figures = task.evaluate(lambda batch: self._call(model, batch), self.data)
        if task.metric not in figures:
            raise KdError(f"--validation {self.stage.validation} gives no {task.metric} to choose by", "give validation data with labels")
        figure = figures[task.metric]
        if self._better(figure):
            self.figure, self.epoch, self.waited = figure, epoch, 0
            if self.stage.keep == "best":
                self.best = snapshot(model)
        else:
            self.waited += 1
        self.stopped = self.stage.patience is not None and self.waited >= self.stage.patience
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
        """Leave the model as it was at its best, if that is what the stage keeps, and tell what was chosen."""
        metric = self.context.task.metric
        if self.stage.keep == "best" and self.best:
            restore(model, self.best)
            self.context.note(f"kept epoch {self.epoch}: {metric} {self.figure:.4g} on {self.stage.validation}")
        elif self.epoch:
            self.context.note(f"best epoch {self.epoch}: {metric} {self.figure:.4g} on {self.stage.validation}; kept the last")

    def state(self) -> dict[str, Any]:
        """What a checkpoint must remember, beside `best`."""
        return {"figure": None if math.isnan(self.figure) else self.figure, "epoch": self.epoch, "waited": self.waited, "stopped": self.stopped}

    def load(self, state: dict[str, Any], best: dict[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        self.figure = math.nan if state["figure"] is None else state["figure"]
        self.epoch, self.waited, self.stopped, self.best = state["epoch"], state["waited"], state["stopped"], best
