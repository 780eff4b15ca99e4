"""Trials: runs of one stage on one model under all conditions: success, failure, interrupt, cancellation, missing inputs."""

from __future__ import annotations

import contextlib
import functools
import time
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from torch import nn

from kdkit.data import Batch
from kdkit.errors import Cancelled, KdError
from kdkit.guards.interrupts import package_of
from kdkit.guards.random_state import seeded
from kdkit.guards.scratch import ScratchFolder
from kdkit.models.copies import private_copy
from kdkit.session.execution import raise_problems
from kdkit.stages.stage import Forecast, Stage
from kdkit.storage import folder
from kdkit.testing import zoo
from kdkit.testing.fingerprint import Fingerprint, fingerprint, outputs
from kdkit.testing.imports import Imports, recorded
from kdkit.testing.interruption import Lines, counted
from kdkit.testing.lifetimes import held, references
from kdkit.testing.surroundings import surroundings_kept
from kdkit.testing.trial_setup import SEED, ModelGuard, TrialSetup, set_up_trial


class Looked(Event):
    """An event that records when it was read."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: list[float] = []

    def is_set(self) -> bool:
        self.looks.append(clock())
        return super().is_set()


def clock() -> float:
    """Seconds, without the time that this thread waits for a processor, where the system reports that (Linux)."""
    try:
        waited = int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        waited = 0.0
    return time.monotonic() - waited


@dataclass(frozen=True)
class Run:
    """One call of `apply`.

    Attributes:
        made: the model, in eval mode; None where it failed.
        error: that it raised.
        looks: times at which it could have been cancelled, its beginning and end among them.
        lines: of the plugin's own code that ran, where they were counted.
        stopped: whether the error that was to stop it was raised.
        imports: that statements in the course of it asked for, where they were recorded.
    """

    made: nn.Module | None
    error: BaseException | None
    looks: tuple[float, ...]
    lines: int
    stopped: bool
    imports: Imports

    @property
    def longest_s(self) -> float:
        """The longest time between two looks at whether the user has cancelled."""
        return max(later - earlier for earlier, later in zip(self.looks, self.looks[1:], strict=False))


class Trial:
    """A stage on one model, with the results of its runs.

    Args:
        stage: to try.
        name: of the zoo's model.

    Attributes:
        touched: changes to what is not the stage's own, a line each, with the occasion.
        refusal: why its check refuses the model; empty where it does not.

    Raises:
        KdError: the stage can't run on this model at all.
    """

    def __init__(self, stage: Stage, name: str):
        self.stage, self.name = stage, name
        self.touched: list[str] = []
        self.refusal = ""
        self._clean()
        with self._watching("in its check"):
            try:
                raise_problems(stage, self.setup.model, self.setup.context(stage), guarded=False)
            except KdError as error:
                self.refusal = error.message
        self.note("in its check")

    def _clean(self) -> None:
        """Set up the trial again, and take a snapshot of everything in it."""
        self.setup: TrialSetup = set_up_trial(self.stage, self.name)
        self.watch = ModelGuard(self.setup)

    def _watching(self, occasion: str) -> contextlib.AbstractContextManager[None]:
        """Record what changes around the stage, and put it back."""
        return surroundings_kept(self.setup.model, lambda what: self.touched.append(f"{what}, {occasion}"))

    def run(
        self,
        occasion: str,
        *,
        record: bool = False,
        count: bool = False,
        stop: BaseException | None = None,
        at: int = 0,
        cancelled: bool = False,
        stage: Stage | None = None,
        **changed: Any,
    ) -> Run:
        """Run the stage on a copy of the model.

        Args:
            occasion: what the run is, for messages.
            record: whether to record imports, which takes a little longer.
            count: whether to count the lines of the plugin's own code, which takes longer.
            stop: raised in the place of the `at`th line of the plugin's own code.
            cancelled: whether the user has cancelled before the start.
            stage: default: the trial's own.
            changed: attributes of the context that differ from the default.
        """
        event = Looked()
        if cancelled:
            event.set()
        chosen, home = stage or self.stage, home_of(type(self.stage))
        context = self.setup.context(chosen, cancelled=event, **changed)
        copy = private_copy(self.setup.model)
        made, error, began = None, None, clock()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._watching(occasion))
            stack.enter_context(seeded(SEED))
            imports = stack.enter_context(recorded()) if record else {}
            lines = stack.enter_context(counted(home, stop, at)) if count or stop else Lines(home)
            try:
                made = chosen.apply(copy, context)
                made = copy if made is None else made
            except (Exception, SystemExit, KeyboardInterrupt) as raised:
                error = raised
        looks = (began, *event.looks, clock())
        if isinstance(made, nn.Module):
            self.touched += [f"{what}, {occasion}" for what in self.watch.shared_with(made)]
            made.eval()
        self.note(occasion)
        return Run(made, error, looks, lines.count, lines.stopped, imports)

    def note(self, occasion: str) -> None:
        """Record what has changed, and reset it for the next run."""
        if found := list(self.watch.changes()):
            self.touched += [f"{what}, {occasion}" for what in found]
            self._clean()

    # the usual runs, each at most once

    @functools.cached_property
    def first(self) -> Run:
        """The run that most checks look at."""
        return self.run("when it succeeds", record=True)

    @functools.cached_property
    def second(self) -> Run:
        """The same run again, with its lines counted."""
        return self.run("when it succeeds", count=True)

    @functools.cached_property
    def broken_off(self) -> list[Run]:
        """Runs that an error or a KeyboardInterrupt ends in the middle of the plugin's own code."""
        lines = self.second.lines  # those of the first run may count modules that it loaded
        stops: list[tuple[BaseException, int]] = [
            (RuntimeError("an error made by kdkit.testing"), lines // 2),
            (KeyboardInterrupt(), lines // 3),
            (KeyboardInterrupt(), lines * 5 // 6),
        ]
        return [self.run("when it fails" if isinstance(stop, Exception) else "when it is interrupted", stop=stop, at=max(at, 1)) for stop, at in stops]

    @functools.cached_property
    def cancelled(self) -> Run:
        """A run that is cancelled from the start."""
        return self.run("when it is cancelled", cancelled=True)

    @functools.cached_property
    def held(self) -> str:
        """Where the models of a run are held after it; empty if nowhere."""
        return held(self._references(), home_of(type(self.stage)))

    def _references(self) -> list[weakref.ref]:
        """References to the models of a run of its own, which nothing else holds."""
        copy, context = private_copy(self.setup.model), self.setup.context(self.stage)
        with self._watching("when it succeeds"), seeded(SEED):
            made = self.stage.apply(copy, context)
        return references(copy, *([made] if isinstance(made, nn.Module) else []))

    @functools.cached_property
    def forecast(self) -> Any:
        """The forecast, or the error that it raised; the default forecast applies the stage, so the first run's model serves."""
        if type(self.stage).forecast is Stage.forecast:
            return Forecast(self.made)
        context = self.setup.context(self.stage)
        try:
            with self._watching("in its forecast"), seeded(SEED):
                return self.stage.forecast(private_copy(self.setup.model), context)
        except Exception as error:
            return error
        finally:
            self.note("in its forecast")

    # what came out

    @property
    def made(self) -> nn.Module:
        """The model of the first run."""
        assert isinstance(self.first.made, nn.Module)
        return self.first.made

    @functools.cached_property
    def batch(self) -> Batch:
        """The batch that models are called with."""
        return zoo.batch(self.name)

    @functools.cached_property
    def print(self) -> Fingerprint:
        """Of the model of the first run."""
        return fingerprint(self.made)

    @functools.cached_property
    def outputs(self) -> list[str] | None:
        """What the model of the first run gives, in short; None where it can't be called."""
        try:
            return outputs(self.made, self.batch)
        except Exception:
            return None

    @functools.cached_property
    def saved(self) -> tuple[Path | None, str]:
        """(folder, "") with the model of the first run, or (None, why it can't be saved)."""
        self._folder = ScratchFolder()
        try:
            return folder.save(self._folder.make() / "saved", self.made, self.setup.session.original, {}), ""
        except KdError as error:
            return None, error.message


def home_of(stage: type[Stage]) -> str:
    """The package whose code is the plugin's own; within kdkit itself, the stage's module."""
    return package_of(stage.__module__)


@dataclass(frozen=True)
class Case:
    """A stage and its trials.

    Attributes:
        stage: as it is tried.
        begun: a trial for each model that its check was asked about.
        refused: model -> reason; a `KdError` in the midst of the work is a refusal too, since some things show only then.
    """

    stage: Stage
    begun: tuple[Trial, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, stage: Stage, names: Iterable[str]) -> Case:
        """Run a stage on models of the zoo."""
        begun, refused = [], {}
        for name in names:
            try:
                begun.append(Trial(stage, name))
            except KdError as error:
                refused[name] = error.message
                continue
            if begun[-1].refusal:
                refused[name] = begun[-1].refusal
                continue
            raised = begun[-1].first.error
            if isinstance(raised, KdError) and not isinstance(raised, Cancelled):
                refused[name] = raised.message
        return cls(stage, tuple(begun), refused)

    @property
    def kind(self) -> type[Stage]:
        """Its class."""
        return type(self.stage)

    @property
    def trials(self) -> list[Trial]:
        """The trials on models that it did not refuse."""
        return [trial for trial in self.begun if trial.name not in self.refused]

    @property
    def whole(self) -> list[Trial]:
        """The trials that gave a model."""
        return [trial for trial in self.trials if isinstance(trial.first.made, nn.Module)]

    @property
    def lead(self) -> list[Trial]:
        """The first of these, for what is the same on every model; none where there is none."""
        return self.whole[:1]

    @property
    def ends(self) -> list[Trial]:
        """The first and the last of these, for what takes long and is nearly the same on every model."""
        return [*self.whole[:1], *self.whole[1:][-1:]]
