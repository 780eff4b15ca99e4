"""Stage runs: stages run in a session, and their results become its versions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from kdkit.errors import KdError
from kdkit.guards.torch_modes import restore_torch_modes
from kdkit.pipelines.order import Planned
from kdkit.pipelines.pipeline import Pipeline
from kdkit.renaming import warn_renamed
from kdkit.session.evaluation import Evaluation
from kdkit.session.forecast import Plan
from kdkit.session.history import TRIAL, History, Reference, Version, checked
from kdkit.session.objects import Objects
from kdkit.session.rerunning import EarlierRun, earlier_run, run_since_change, with_replacement_notes
from kdkit.session.running import Observe, Runner
from kdkit.session.settings import check_integer


@restore_torch_modes
class StageRuns(Evaluation):
    """The part of a session that runs stages."""

    def plan(self, stages: Any, on: Any = None, observe: Observe | None = None, label: str = "") -> Plan:
        """Predict what `run` would do: its steps, bridges included, with parameters, bytes and MACs after each. Nothing runs.

        Args:
            stages, on, label, observe: as for `run`.

        Raises:
            KdError: what `run` would raise before it begins.
            Cancelled: `cancel` was called.
        """
        earlier = self._earlier_run(label, on)
        start = self.version(on) if earlier is None else earlier.start
        with self._busy(observe) as observe:
            return self._runner().predict(Pipeline.of(stages), start, observe)

    def run(self, stages: Any, *, on: Any = None, label: str = "", seed: int | None = None, observe: Observe | None = None) -> Version:
        """Run stages one after another, each on a private copy; commit each that succeeds; return the last version.

        A label that a version on the way to the head has means that its run is done again: the new run starts where that one started,
        and the new versions take the place of the old ones. What was built on these is kept and marked. `restore` brings back the rest.

        Args:
            stages: a stage, lines of text, a `Pipeline`, or a list of these.
            on: the version to start from; default: the head, or the start of the run that is done again.
            label: label of the last version.
            seed: random seed; default: the pipeline's, or else the session's.
            observe: callback that receives progress.

        Raises:
            KdError: the order is impossible, a need is not met, or a stage failed; the session is then as it was before that stage, or
                before the whole run if it was done again.
            Cancelled: `cancel` was called.

        >>> import torch
        >>> from kdkit import Session
        >>> session = Session(torch.nn.Linear(8, 4), example=torch.zeros(1, 8), measures=("parameters",))
        >>> for ratio in (0.5, 0.9):
        ...     _ = session.run(f"decompose svd --ratio {ratio}", label="thin")
        >>> [(version.name, version.made_by) for version in session.versions[1:]]
        [('@thin', 'decompose svd --ratio 0.9')]
        """
        pipeline, label = Pipeline.of(stages), checked(label) if label else ""
        with self._busy(observe) as observe:
            earlier = self._earlier_run(label, on)
            if earlier is not None:
                made = [each for part, _ in self._runner().run(pipeline, earlier.start, self._seed(seed, pipeline), observe) for each in part]
                return self._replace(earlier, [*made[:-1], replace(made[-1], label=label)])
            done: list[Version] = []
            try:
                for made, is_last in self._runner().run(pipeline, self.version(on), self._seed(seed, pipeline), observe):
                    self.history = self.history.grown(made, label if is_last else "")
                    done.append(self.head)
            except KdError as error:
                if done:
                    error.with_hints(f"the steps before it are kept: {' '.join(each.name for each in done)}")
                raise
            return self.head

    def rerun(self, version: Any = None, *, seed: int | None = None, observe: Observe | None = None) -> Version:
        """Run the lines that made a version again, after a change of what they build on: other data, another seed, or a version replaced.

        If a version on the way was replaced, the lines after it run on the one in its place; else all of them run. The new versions take
        the labels and the place of the old ones, as for `run`.

        Args:
            version: default: the head.
            seed: random seed of every line; default: that with which it ran before.
            observe: callback that receives progress.

        Raises:
            KdError: no stage made the version, or a line failed; the session is then as it was.
            Cancelled: `cancel` was called.

        >>> import torch
        >>> from kdkit import Session
        >>> session = Session(torch.nn.Linear(8, 4), example=torch.zeros(1, 8), measures=("parameters",))
        >>> _ = session.run("decompose svd --ratio 0.5", label="thin")
        >>> session.rerun("@thin", seed=1).seed
        1
        """
        with self._busy(observe) as observe:
            earlier = run_since_change(self.history, self.version(version))
            history, start, made = self.history, earlier.start, list[Version]()
            numbers = {earlier.versions[0].parent: start.number}
            for old in earlier.lines:
                assert old.stage is not None  # only a line with a stage makes a version
                seeded = old.seed if seed is None else check_integer("seed", seed)
                for part, _ in self._runner(history=history).run(Pipeline((old.stage,)), start, seeded, observe):
                    numbers[old.number] = part[-1].number
                    part[-1] = start = replace(part[-1], label=old.label, start=numbers.get(old.start, old.start))
                    made += part
                    history = history.grown(part, old.label)
            return self._replace(earlier, made)

    def _earlier_run(self, label: str, on: Any) -> EarlierRun | None:
        return earlier_run(self.history, label, None if on is None else self.version(on))

    def _replace(self, earlier: EarlierRun, made: list[Version]) -> Version:
        """Commit new versions in place of those of an earlier run."""
        after = self.history.succeeded(earlier.versions, made)
        for version in self.history:
            if version.number not in after.versions:
                self._removed.keep(self.history, version, was_replaced=True)
        self.history = with_replacement_notes(earlier.versions, made, after)
        return self.head

    def trial(self, stages: Any, *, on: Any = None, seed: int | None = None, observe: Observe | None = None) -> Version:
        """Run stages and measure the result without committing it: for a search that tries many pipelines.

        The version that comes back is labelled "trial" and is not part of the session: neither the head nor `versions` change.
        `run` with the same stages, start and seed makes the same model as a version of the session.

        Args:
            stages, on, seed, observe: as for `run`.

        Raises:
            KdError, Cancelled: as for `run`.

        >>> import torch
        >>> from kdkit import Session
        >>> session = Session(torch.nn.Linear(8, 4), example=torch.zeros(1, 8), measures=("parameters",))
        >>> session.trial("decompose svd --ratio 0.5")["parameters"] < session.head["parameters"]
        True
        >>> [version.name for version in session.versions]
        ['@base']
        """
        with self._busy(observe) as shown:
            return self._trial(stages, on=on, seed=seed, observe=shown)

    @contextlib.contextmanager
    def experiment(self) -> Iterator[Callable[..., Version]]:
        """A block of several trials: nothing else runs between them, and `cancel` stops the current trial and all that follow.

        Yields:
            A function that runs a trial, with the arguments of `trial`.

        Raises:
            KdError: something is running in this session.

        >>> import torch
        >>> from kdkit import Session
        >>> session = Session(torch.nn.Linear(8, 4), example=torch.zeros(1, 8), measures=("parameters",))
        >>> with session.experiment() as trial:
        ...     [trial(f"decompose svd --ratio {ratio}")["parameters"] for ratio in (0.5, 0.9)]
        [16, 28]
        """
        with self._busy() as shown:
            yield lambda stages, *, observe=None, **options: self._trial(stages, observe=observe or shown, **options)

    def _trial(self, stages: Any, *, on: Any = None, seed: int | None = None, observe: Observe | None = None) -> Version:
        pipeline, start = Pipeline.of(stages), self.version(on)
        self._context("the trial", observe).check_cancelled()
        *_, (made, _) = self._runner().run(pipeline, start, self._seed(seed, pipeline), observe)
        return replace(made[-1], label=TRIAL, parent=start.number, report=self._scale.applied(made[-1].report), compared=(Reference(start.name, start.report),))

    def validate_order(self, stages: Any, on: Any = None, given: Mapping[str, Any] | None = None) -> list[list[Planned] | KdError]:
        """For each stage the steps it would run as, bridges first, or the error that keeps it from running. Nothing runs.

        Args:
            stages, on: as for `run`.
            given: objects that the stages name and that the session does not have yet.
        """
        objects = self.objects.updated(given or {}, self.settings["batch_size"])
        return self._runner(objects).validate_order(Pipeline.of(stages), self.version(on))

    def judge(self, stages: Any, on: Any = None, given: Mapping[str, Any] | None = None) -> list[list[Planned] | KdError]:
        """Deprecated: use `validate_order`."""
        warn_renamed("Session.judge", "validate_order", stacklevel=4)
        return self.validate_order(stages, on, given)

    def _seed(self, seed: int | None, pipeline: Pipeline) -> int:
        return check_integer("seed", next(value for value in (seed, pipeline.seed, self.settings["seed"]) if value is not None))

    def _runner(self, objects: Objects | None = None, history: History | None = None) -> Runner:
        chosen = self.objects if objects is None else objects
        return Runner(
            self.history if history is None else history,
            chosen,
            self.task,
            lambda title, observe, seed: self._context(title, observe, seed, chosen),
            self._measured,
            tuple(self.trackers.values()),
        )
