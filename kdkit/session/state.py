"""State: what a session holds, how it is looked up and how it changes.

Its history is immutable and replaced by a single assignment once a change is complete; so a stage that fails, is cancelled or interrupted
leaves the session as it was.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from torch import nn

from kdkit import tasks
from kdkit.errors import KdError
from kdkit.guards.cleanup import always_run
from kdkit.guards.scratch import ScratchFolder
from kdkit.guards.torch_modes import restore_torch_modes
from kdkit.measurement.predictions import PredictionStore
from kdkit.measurement.time_scale import TimeScale
from kdkit.session import task_lookup
from kdkit.session.history import History, Version
from kdkit.session.marks import marks
from kdkit.session.measuring import choose_backend
from kdkit.session.objects import Objects
from kdkit.session.progress_bar import observed
from kdkit.session.removed import RemovedVersions
from kdkit.session.running import Observe
from kdkit.session.settings import DEFAULTS, SessionSettings, changed_settings, refuse_other_names
from kdkit.session.status import Status
from kdkit.session.written_files import WrittenFiles
from kdkit.stages.context import Context
from kdkit.stages.data_sources import DATA

if TYPE_CHECKING:
    from kdkit.backends.base import Backend


@restore_torch_modes
class SessionState:
    """What a session holds.

    Attributes:
        original: the model that it began with.
        history: the versions.
        objects: what stages name: data sets, teachers, and others.
        settings: the settings, by name.
        task: computes loss and metrics; None while there is no data.
        trackers: the loggers that are on, by name.
    """

    original: nn.Module
    objects: Objects
    settings: dict[str, Any]
    task: tasks.Task | None
    trackers: dict[str, Any]
    _after_drop: tuple[History, int] | None

    def _begin(self) -> None:
        """The state of a session without model, data or versions."""
        self._scale = TimeScale()
        self.settings = dict(DEFAULTS)
        self.history = History()
        self.objects = Objects({}, self._model_named, DEFAULTS["batch_size"])
        self.task = None
        self.trackers = {}
        self._observe: Observe | None = None
        self._running: dict[str, object] = {}
        self._cancelled = threading.Event()
        self._scratch = ScratchFolder()
        self._predictions = PredictionStore()
        self._removed = RemovedVersions()
        self._after_drop = None
        self._written = WrittenFiles()

    @property
    def history(self) -> History:
        """The versions, with times on one scale, and with what each is compared with."""
        return self._history

    @history.setter
    def history(self, history: History) -> None:
        self._history = history.reported(self._scale.applied).compared(self._marks)

    def _marks(self, version: Version) -> tuple[str, ...]:
        return marks(version, self.settings["loss_limit"])

    @property
    def versions(self) -> tuple[Version, ...]:
        """All versions, in the order in which they were made."""
        return tuple(self.history)

    @property
    def head(self) -> Version:
        """The version that the next stage works on."""
        return self.history.versions[self.history.head]

    def version(self, name: str | int | Version | None = None) -> Version:
        """A version by "@label", "@number", "@head", "@-1", "@best"; default: the head.

        Raises:
            KdError: there is no such version.
        """
        if isinstance(name, Version):
            return self.history.same(name)
        if name is None:
            return self.head
        if str(name) in ("@best", "best") and not any(version.label == "best" for version in self.history):
            return self._best()
        try:
            return self.history.find(name)
        except KdError as error:
            raise error.with_hints(*self._removed.hints_on(str(name))) from None

    __getitem__ = version

    def _best(self) -> Version:
        if self.task is None:
            raise KdError("no version is best: no quality was measured", "%kd set --eval {data}")
        scored = [version for version in self.history if version.report.get(self.task.metric) is not None]
        if not scored:
            raise KdError(f"no version has a figure {self.task.metric!r}", "%kd set --eval {labelled_data}, then %kd eval")
        sign = 1 if self.task.better == "higher" else -1
        return max(scored, key=lambda version: sign * version[self.task.metric])  # type: ignore[union-attr]

    def set(self, **given: Any) -> Self:
        """Change settings, data, the teacher, the tokenizer, or any other object; None removes an object.

        Args:
            given: settings and objects by name, as for `Session`.

        Raises:
            KdError: data can't be converted or the model can't be called with it, or a setting's value is wrong; nothing is changed then.
        """
        refuse_other_names(given)
        settings = changed_settings(self.settings, given)
        # a tracker may hold a file or a connection: one that was on stays the same object
        trackers = {name: self.trackers.get(name) or SessionSettings.find_record("trackers", name) for name in settings["trackers"] or ()}
        objects = self.objects.updated({name: value for name, value in given.items() if name not in DEFAULTS}, settings["batch_size"])
        task = self._task_for(objects, settings)
        self.objects, self.settings, self.task, self.trackers = objects, settings, task, trackers
        return self

    def _task_for(self, objects: Objects, settings: Mapping[str, Any]) -> tasks.Task | None:
        example, named = objects.example(), settings["task"]
        place = "" if settings["output"] is None else str(settings["output"])
        if example is None and named is None:
            return None
        if named is None:
            found = tasks.infer_task(self.original, example, place)
        else:
            found = task_lookup.task(named)
            found = found if example is None else tasks.with_answer(found, self.original, example, place)
        if isinstance(found, tasks.SequenceToSequence):
            found = copy.copy(found)
            found.tokenizer = objects.get("tokenizer")
        return task_lookup.task(found, loss=settings["loss"], metric=settings["metric"])

    def backend_for(self, model: nn.Module) -> Backend:
        """The session's backend, or the CPU for a model that it refuses."""
        return choose_backend(self.settings["backend"], model)

    def _model_named(self, name: str) -> nn.Module:
        return self.original if name == "original" else self.history.model_of(self.version(name))

    def status(self) -> Status:
        """Versions with their figures, task, data and backend, and the techniques that fit next."""
        return Status(self.history, self.task.name if self.task else "", tuple(name for name in DATA if name in self.objects), self.settings["backend"])

    def cancel(self) -> None:
        """Ask the stage or view that is running to stop; it leaves the session as it was."""
        self._cancelled.set()

    def _context(self, title: str, observe: Observe | None, seed: int = 0, objects: Objects | None = None) -> Context:
        return Context(
            task=self.task,
            seed=seed,
            device="cuda" if self.settings["backend"] == "cuda" else "cpu",
            backend=self.settings["backend"],
            objects=self.objects if objects is None else objects,
            original=self.original,
            observe=observe or (lambda progress: None),
            cancelled=self._cancelled,
            scratch=str(self._scratch.path),
            stage=title,
        )

    @contextlib.contextmanager
    def _busy(self, observe: Observe | None = None) -> Iterator[Observe]:
        """A block that runs stages, or adds or removes versions; only one at a time.

        Yields:
            The callback for progress: `observe`, or else that of a progress bar.

        Raises:
            KdError: another thread is in such a block.
        """
        block = object()

        def end() -> None:
            if self._running.get("block") is block:
                self._running.clear()

        with always_run(end):
            if self._running.setdefault("block", block) is not block:
                raise KdError("a stage is running in this session", "wait for it, or cancel it first")
            self._cancelled.clear()
            with observed(observe, self.settings["verbose"]) as shown:
                yield shown
