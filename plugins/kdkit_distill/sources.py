"""Sources: where a teacher's signals come from. A lesson asks; who answers is none of the objectives' business."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from kdkit.data import Batch
from kdkit.models import private_copy
from kdkit.tasks import Task
from kdkit_distill.matching import Capture
from kdkit_distill.signals import Signal

if TYPE_CHECKING:
    from kdkit.context import Context


class Source:
    """Gives a teacher's signals; opened before the training and closed after it, also when it failed."""

    def open(self, device: torch.device, layers: Sequence[str] = ()) -> None:
        """Get ready to answer on `device`, with the features of these layers."""

    def signal(self, batch: Batch) -> Signal:
        """What the teacher says of a batch, without a graph, on the batch's device."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of everything; the teacher is then as it was, to the bit."""

    @property
    def model(self) -> nn.Module | None:
        """The teacher as a module, for matching layers; None where there is none at hand."""
        return None

    def identity(self) -> str:
        """What the answers depend on beside the inputs, hashed: a cache is refused when it differs."""
        raise NotImplementedError


class Live(Source):
    """A teacher in memory, asked at each step, in eval mode and without gradients.

    Args:
        name: of the teacher in the session.
        context: of the run.
    """

    def __init__(self, name: str, context: Context):
        self.name, self.context = name, context
        self.task: Task = context.task
        self._held = contextlib.ExitStack()
        self._model: nn.Module | None = None
        self._capture = Capture()

    @property
    def model(self) -> nn.Module:
        if self._model is None:
            self._model = self._held.enter_context(self.context.teacher(self.name))
        return self._model

    def open(self, device: torch.device, layers: Sequence[str] = ()) -> None:
        model = self.model
        places = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
        if places - {device}:
            # a copy, since moving the user's own model would change it
            self._model = model = private_copy(model).to(device)
        self._capture = self._held.enter_context(Capture(model, layers))

    @torch.no_grad()
    def signal(self, batch: Batch) -> Signal:
        output = batch.call(self.model)
        return Signal(self.task.prediction(output, batch), self._capture.take(), output)

    def close(self) -> None:
        self._model = None
        self._held.close()

    def identity(self) -> str:
        from kdkit.training.checkpoint import digest

        return digest(self.model)
