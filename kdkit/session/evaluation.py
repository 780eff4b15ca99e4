"""Evaluation: the versions of a session are measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Self

from torch import nn

from kdkit.guards.torch_modes import restore_torch_modes
from kdkit.measurement.report import OTHER_DATA, Report
from kdkit.models.stored_form import Storage
from kdkit.models.traits import traits_of
from kdkit.session.evaluated_data import EvaluatedData, are_same, on_earlier_data
from kdkit.session.history import Version
from kdkit.session.measuring import Measuring
from kdkit.session.objects import Objects
from kdkit.session.state import SessionState
from kdkit.tasks import Call

DECIDE_QUALITY = ("sample", "task", "output", "loss", "metric")
"""Settings that the figures on evaluation data depend on."""

ON_DATA = ("quality", "map", "rouge_l", "agreement")
"""The measures that need evaluation data."""


@restore_torch_modes
class Evaluation(SessionState):
    """The part of a session that measures versions."""

    def set(self, **given: Any) -> Self:
        """Change settings, data, the teacher, the tokenizer, or any other object; None removes an object.

        With other evaluation data, or another task, the original is measured; figures of other versions are marked as those of earlier
        data, and `evaluate` measures these again.

        Args:
            given: settings and objects by name, as for `Session`.

        Raises:
            KdError: data can't be converted or the model can't be called with it, or a setting's value is wrong; nothing is changed then.
        """
        before = self.objects, self.settings, self.task, self.trackers
        super().set(**given)
        try:
            if self.history.versions and "eval" in self.objects:
                self._measure_late(*before[:2])
            if "loss_limit" in given:
                self.history = self.history  # which marks them again
        except BaseException:
            self.objects, self.settings, self.task, self.trackers = before
            raise
        return self

    def _measure_late(self, objects: Objects, settings: Mapping[str, Any]) -> None:
        """Measure the original again where its figures on evaluation data depend on what has changed, and mark those of other versions.

        Args:
            objects, settings: as they were.
        """
        changed = {name for name in DECIDE_QUALITY if settings[name] != self.settings[name]}
        is_other = not are_same(objects.get("eval"), self.objects["eval"]) or bool(changed - {"sample"})
        if not is_other and not changed:
            return
        history = self.history.reported(on_earlier_data) if is_other else self.history
        base = next((version for version in history if version.model is self.original), None)
        if base is not None:
            report = self._measured(self.original, storage=base.storage) if objects.example() is None else self._with_quality(base)
            history = history.replaced(replace(base, report=report))
        if is_other:
            self._removed.change_reports(on_earlier_data)
        self.history = history

    def _with_quality(self, version: Version, all: bool = False) -> Report:
        """A version's report, with its figures on the evaluation data measured again."""
        measuring = self._measuring(all)
        chosen = tuple(name for name in measuring.measures or ON_DATA if name in ON_DATA)
        return version.report.with_quality(replace(measuring, measures=chosen).measure(self.history.model_of(version)), chosen)

    def evaluate(self, version: Any = None, data: Any = None, all: bool = False) -> Report:
        """Measure a version again and store the report with it. On new data, only return its quality.

        Args:
            version: default: the head.
            data: new data, in any form.
            all: measure its quality on all of the evaluation data, where only a sample was evaluated, and leave other figures.

        Raises:
            KdError: the version was dropped, or the data can't be converted.
        """
        chosen = self.version(version)
        model = self.history.model_of(chosen)
        if data is not None:
            adopted = EvaluatedData(self.objects.adopt(data, self.settings["batch_size"]), OTHER_DATA)
            return replace(self._measuring(), evaluated=adopted, measures=("quality", "agreement")).measure(model)
        report = self._with_quality(chosen, all=True) if all else self._measured(model, storage=chosen.storage)
        # a second thread may have changed its label meanwhile
        self.history = self.history.replaced(replace(self.version(chosen), report=report))
        return self.version(chosen).report

    def answering(self, model: nn.Module) -> AbstractContextManager[Call]:
        """A function that returns a model's output for a batch, on the session's backend; a version does not run again on what it ran on before."""
        backend = self.backend_for(model)
        if model is not self.original and all(version.model is not model for version in self.history):
            return backend.runner(model)  # it is the user's, who may change it
        return self._predictions.answering(model, backend.name, lambda: backend.runner(model))

    def _measured(self, model: nn.Module, check_cancelled: Callable[[], None] = lambda: None, storage: Storage | None = None) -> Report:
        return self._measuring().measure(model, check_cancelled, storage)

    def _measuring(self, all: bool = False) -> Measuring:
        settings, example = self.settings, self.objects.example()
        data = self.objects.get("eval")
        evaluated = EvaluatedData(data) if all else EvaluatedData.of(data, settings["sample"])
        return Measuring(self.task, evaluated, example, settings["backend"], self.original, settings["measures"], self._predictions, self._scale)

    def _adopt(self, model: nn.Module, label: str, origin: str) -> Version:
        version = Version(self.history.next, model, self._measured(model), traits_of(model), origin=origin)
        self.history = self.history.grown([version], label)
        return self.head
