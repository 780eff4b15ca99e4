"""Trials: a stage at work on one bench, again and again, in every way that a user may meet it."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from torch import nn

from kdkit import store
from kdkit.contract import Forecast, Stage
from kdkit.data import Batch
from kdkit.errors import Cancelled, KdError
from kdkit.execution import raise_problems
from kdkit.models import private_copy
from kdkit.modes import keeping_modes
from kdkit.seeding import seeded
from kdkit.testing import zoo
from kdkit.testing.bench import SEED, Bench, Watch, bench
from kdkit.testing.fingerprint import Fingerprint, fingerprint, outputs
from kdkit.testing.imports import Imports, recorded
from kdkit.testing.interruption import Lines, counted
from kdkit.testing.switches import in_force, put_back


class Looked(Event):
    """An event that remembers when it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: list[float] = []

    def is_set(self) -> bool:
        self.looks.append(clock())
        return super().is_set()


def clock() -> float:
    """Seconds, of which none go by while this thread waits for a processor that others use, where the system tells that (Linux)."""
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
        """The longest time in which a user's wish to cancel would have gone unheard."""
        return max(later - earlier for earlier, later in zip(self.looks, self.looks[1:], strict=False))


class Trial:
    """A stage on one model; what was found while trying is kept.

    Args:
        stage: to try.
        name: of the zoo's model.

    Attributes:
        touched: what was done to things that are not the stage's own, a line each, with the occasion.
        refusal: why its check refuses the model; empty where it does not.

    Raises:
        KdError: the stage can't stand before this model at all.
    """

    def __init__(self, stage: Stage, name: str):
        self.stage, self.name = stage, name
        self.touched: list[str] = []
        self.refusal = ""
        self._clean()
        try:
            raise_problems(stage, self.bench.model, self.bench.context(stage))
        except KdError as error:
            self.refusal = error.message
        self.note("in its check")

    def _clean(self) -> None:
        """A bench as new, and all on it watched."""
        self.bench: Bench = bench(self.stage, self.name)
        self.watch = Watch(self.bench)

    @keeping_modes
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
        """Run the stage on a copy of the bench's model.

        Args:
            occasion: what the run is, for messages.
            record: whether to record imports, which takes a little longer.
            count: whether to count the lines of the plugin's own code, which takes longer.
            stop: raised in the place of the `at`th line of the plugin's own code.
            cancelled: whether the user has asked to stop already.
            stage: another one than the trial's.
            changed: attributes of the context that are not as usual.
        """
        event = Looked()
        if cancelled:
            event.set()
        chosen, home = stage or self.stage, home_of(type(self.stage))
        context = self.bench.context(chosen, cancelled=event, **changed)
        copy = private_copy(self.bench.model)
        made, error, settings, began = None, None, in_force(), clock()
        with contextlib.ExitStack() as stack:
            stack.enter_context(seeded(SEED))
            imports = stack.enter_context(recorded()) if record else {}
            lines = stack.enter_context(counted(home, stop, at)) if count or stop else Lines(home)
            try:
                made = chosen.apply(copy, context)
                made = copy if made is None else made
            except (Exception, SystemExit, KeyboardInterrupt) as raised:
                error = raised
        self.touched += [f"{what}, {occasion}" for what in put_back(settings)]
        looks = (began, *event.looks, clock())
        if isinstance(made, nn.Module):
            self.touched += [f"{what}, {occasion}" for what in self.watch.shared_with(made)]
            made.eval()
        self.note(occasion)
        return Run(made, error, looks, lines.count, lines.stopped, imports)

    def note(self, occasion: str) -> None:
        """Keep what has changed on the bench; what follows finds it as it should be."""
        if found := list(self.watch.changes()):
            self.touched += [f"{what}, {occasion}" for what in found]
            self._clean()

    # the usual runs, each at most once

    @functools.cached_property
    def first(self) -> Run:
        """The run that all is judged by."""
        return self.run("when it succeeds", record=True)

    @functools.cached_property
    def second(self) -> Run:
        """The same again, its lines counted."""
        return self.run("when it succeeds", count=True)

    @functools.cached_property
    def broken_off(self) -> list[Run]:
        """Runs that an error or a KeyboardInterrupt ends, in the midst of the plugin's own code."""
        lines = self.second.lines  # those of the first run may count modules that it loaded
        stops: list[tuple[BaseException, int]] = [
            (RuntimeError("an error made by kdkit.testing"), lines // 2),
            (KeyboardInterrupt(), lines // 3),
            (KeyboardInterrupt(), lines * 5 // 6),
        ]
        return [self.run("when it fails" if isinstance(stop, Exception) else "when it is interrupted", stop=stop, at=max(at, 1)) for stop, at in stops]

    @functools.cached_property
    def cancelled(self) -> Run:
        """A run that is cancelled as soon as it looks."""
        return self.run("when it is cancelled", cancelled=True)

    @functools.cached_property
    def forecast(self) -> Any:
        """What it says it would do, or the error that the forecast raised; one that applies the stage is what was made already."""
        if type(self.stage).forecast is Stage.forecast:
            return Forecast(self.made)
        context = self.bench.context(self.stage)
        try:
            with seeded(SEED):
                return self.stage.forecast(private_copy(self.bench.model), context)
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
        """What models are called with."""
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
        self._folder = tempfile.TemporaryDirectory(prefix="kdkit-testing-")
        try:
            return store.save(Path(self._folder.name) / "saved", self.made, self.bench.session.original, {}), ""
        except KdError as error:
            return None, error.message


def home_of(stage: type[Stage]) -> str:
    """The package whose code is the plugin's own; within kdkit itself, the stage's module."""
    package = stage.__module__.partition(".")[0]
    return stage.__module__ if package == "kdkit" else package


@dataclass(frozen=True)
class Case:
    """A stage, and all that was tried with it.

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
