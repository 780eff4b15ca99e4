"""Evaluation: the versions of a session are measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from torch import nn

from kdkit.guards.torch_modes import restore_torch_modes
from kdkit.measurement.report import Report
from kdkit.models.stored_form import Storage
from kdkit.models.traits import traits_of
from kdkit.session.history import History, Version
from kdkit.session.measuring import Measuring
from kdkit.session.state import SessionState
from kdkit.tasks import Call


@restore_torch_modes
class Evaluation(SessionState):
    """The part of a session that measures versions."""

    def evaluate(self, version: Any = None, data: Any = None) -> Report:
        """Measure a version again and store the report with it. On new data, only return its quality.

        Args:
            version: default: the head.
            data: new data, in any form.
        """
        chosen = self.version(version)
        model = self.history.model_of(chosen)
        if data is not None:
            measuring = replace(self._measuring(), data=self.objects.adopt(data, self.settings["batch_size"]), measures=("quality", "agreement"))
            return measuring.measure(model)
        report = self._measured(model, storage=chosen.storage)
        # a second thread may have changed its label meanwhile
        self._commit(self.history.replaced(replace(self.version(chosen), report=report)))
        return self.version(chosen).report

    def answering(self, model: nn.Module) -> AbstractContextManager[Call]:
        """A function that returns a model's output for a batch, on the session's backend; a version does not run again on what it ran on before."""
        backend = self.backend_for(model)
        if model is not self.original and all(version.model is not model for version in self.history):
            return backend.runner(model)  # it is the user's, who may change it
        return self._predictions.answering(model, backend.name, lambda: backend.runner(model))

    def _measured(self, model: nn.Module, check_cancelled: Callable[[], None] = lambda: None, storage: Storage | None = None) -> Report:
        return self._measuring().measure(model, check_cancelled, storage)

    def _measuring(self) -> Measuring:
        data, example, settings = self.objects.get("eval"), self.objects.example(), self.settings
        return Measuring(self.task, data, example, settings["backend"], self.original, settings["measures"], self._predictions, self._scale)

    def _adopt(self, model: nn.Module, label: str, origin: str) -> Version:
        version = Version(self.history.next, model, self._measured(model), traits_of(model), origin=origin)
        self._commit(self.history.grown([version], label))
        return self.head

    def _commit(self, history: History) -> None:
        """Make a history the session's; its times are on the scale that the last timing may have changed."""
        self.history = history.reported(self._scale.applied)
