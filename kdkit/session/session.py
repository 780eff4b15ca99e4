"""The session: a model, its data, and the versions that stages made of it.

Its state is one immutable `History`, replaced by a single assignment once a change is complete; so a stage that fails, is
cancelled or interrupted leaves the session as it was.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from kdkit import tasks
from kdkit.errors import KdError
from kdkit.guards.scratch import ScratchFolder
from kdkit.guards.torch_modes import restore_torch_modes
from kdkit.measurement.report import Report
from kdkit.models.copies import have_equal_tensors, private_copy
from kdkit.models.stored_form import Storage
from kdkit.models.traits import traits_of
from kdkit.models.wrappers import unwrap_model, unwrap_parts
from kdkit.pipelines.order import Planned
from kdkit.pipelines.pipeline import Pipeline
from kdkit.renaming import warn_renamed
from kdkit.session import showing, task_lookup
from kdkit.session.adoption import adopt_model
from kdkit.session.forecast import Plan
from kdkit.session.history import TRIAL, History, Version, checked
from kdkit.session.listing import Listing
from kdkit.session.loading import load_version
from kdkit.session.measuring import Measuring, choose_backend
from kdkit.session.model_card import write_card
from kdkit.session.objects import Objects
from kdkit.session.removed import RemovedVersions
from kdkit.session.rerunning import EarlierRun, earlier_run, run_since_change, with_replacement_notes
from kdkit.session.running import Observe, Runner
from kdkit.session.saving import code_of, facts_of, recipe_of
from kdkit.session.settings import DEFAULTS, SessionSettings, accept_settings, changed_settings, check_integer, check_names, document_settings, refuse_other_names
from kdkit.session.status import Status
from kdkit.session.stored_form import codec_named, saved_storage
from kdkit.session.written_files import WrittenFiles
from kdkit.stages.context import Context
from kdkit.stages.data_sources import DATA
from kdkit.storage import folder
from kdkit.storage.export import export
from kdkit.storage.trusted_classes import canonical, path_of

if TYPE_CHECKING:
    from kdkit.backends.base import Backend


@document_settings
@restore_torch_modes
class Session:
    """A model, its data, and every version that stages made of it.

    Args:
        model: an nn.Module in memory; it is copied and never changed.
        SETTINGS
        label: label of the first version.
        objects: any other objects that stages may name.

    Data is taken in any form that `kdkit.session.adoption.adopt_data` converts. None means that a setting is not given.

    >>> import torch
    >>> session = Session(torch.nn.Linear(4, 3), eval=(torch.randn(8, 4), torch.arange(8) % 3), measures=("quality", "parameters"))
    >>> session.head.name
    '@base'
    """

    @accept_settings
    def __init__(self, model: Any, *, label: str = "base", **objects: Any) -> None:
        label = checked(label)
        self.history = History()
        self.objects = Objects({}, self._model_named, DEFAULTS["batch_size"])
        self.settings: dict[str, Any] = dict(DEFAULTS)
        self.task: tasks.Task | None = None
        self.trackers: dict[str, Any] = {}
        self._observe: Observe | None = None
        self._running = threading.Lock()
        self._cancelled = threading.Event()
        self._scratch = ScratchFolder()
        self._removed = RemovedVersions()
        self._after_drop: tuple[History, int] | None = None
        self._written = WrittenFiles()
        self.original = unwrap_parts(private_copy(adopt_model(model))).eval()
        given = {name: value for name, value in objects.items() if value is not None}
        check_names(given)
        self.set(**given)
        self._adopt(self.original, label, f"use {type(self.original).__name__}")

    # state

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

    def set(self, **given: Any) -> Session:
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

    def _adopt(self, model: nn.Module, label: str, origin: str) -> Version:
        version = Version(self.history.next, model, self._measured(model), traits_of(model), origin=origin)
        self.history = self.history.grown([version], label)
        return self.head

    # running stages

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
        with self._busy():
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
        >>> session = Session(torch.nn.Linear(8, 4), example=torch.zeros(1, 8), measures=("parameters",))
        >>> for ratio in (0.5, 0.9):
        ...     _ = session.run(f"decompose svd --ratio {ratio}", label="thin")
        >>> [(version.name, version.made_by) for version in session.versions[1:]]
        [('@thin', 'decompose svd --ratio 0.9')]
        """
        pipeline, label = Pipeline.of(stages), checked(label) if label else ""
        with self._busy():
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
        >>> session = Session(torch.nn.Linear(8, 4), example=torch.zeros(1, 8), measures=("parameters",))
        >>> _ = session.run("decompose svd --ratio 0.5", label="thin")
        >>> session.rerun("@thin", seed=1).seed
        1
        """
        with self._busy():
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
        >>> session = Session(torch.nn.Linear(8, 4), example=torch.zeros(1, 8), measures=("parameters",))
        >>> session.trial("decompose svd --ratio 0.5")["parameters"] < session.head["parameters"]
        True
        >>> [version.name for version in session.versions]
        ['@base']
        """
        with self.experiment() as trial:
            return trial(stages, on=on, seed=seed, observe=observe)

    @contextlib.contextmanager
    def experiment(self) -> Iterator[Callable[..., Version]]:
        """A block of several trials: nothing else runs between them, and `cancel` stops the current trial and all that follow.

        Yields:
            A function that runs a trial, with the arguments of `trial`.

        Raises:
            KdError: something is running in this session.

        >>> import torch
        >>> session = Session(torch.nn.Linear(8, 4), example=torch.zeros(1, 8), measures=("parameters",))
        >>> with session.experiment() as trial:
        ...     [trial(f"decompose svd --ratio {ratio}")["parameters"] for ratio in (0.5, 0.9)]
        [16, 28]
        """
        with self._busy():
            yield self._trial

    def _trial(self, stages: Any, *, on: Any = None, seed: int | None = None, observe: Observe | None = None) -> Version:
        pipeline, start = Pipeline.of(stages), self.version(on)
        self._context("the trial", observe).check_cancelled()
        *_, (made, _) = self._runner().run(pipeline, start, self._seed(seed, pipeline), observe)
        return replace(made[-1], label=TRIAL, parent=start.number)

    def cancel(self) -> None:
        """Ask the stage or view that is running to stop; it leaves the session as it was."""
        self._cancelled.set()

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
    def _busy(self) -> Iterator[None]:
        """A block that runs stages, or adds or removes versions; only one at a time.

        Raises:
            KdError: another thread is in such a block.
        """
        if not self._running.acquire(blocking=False):
            raise KdError("a stage is running in this session", "wait for it, or cancel it first")
        try:
            self._cancelled.clear()
            yield
        finally:
            self._running.release()

    # measuring and showing

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
        parent = self.history.versions[chosen.parent].model if chosen.parent is not None else None
        report = self._measured(model, parent, storage=chosen.storage)
        # a second thread may have changed its label meanwhile
        self.history = self.history.replaced(replace(self.version(chosen), report=report))
        return report

    def _measured(self, model: nn.Module, parent: nn.Module | None = None, check_cancelled: Callable[[], None] = lambda: None, storage: Storage | None = None) -> Report:
        return self._measuring().measure(model, parent, check_cancelled, storage)

    def _measuring(self) -> Measuring:
        return Measuring(self.task, self.objects.get("eval"), self.objects.example(), self.settings["backend"], self.original, self.settings["measures"])

    def compare(self, *versions: Any) -> Listing:
        """Versions side by side, each figure with its ratio to the first version's; default: all versions."""
        chosen = tuple(self.version(version) for version in versions) or self.versions
        return Listing(chosen, self.history.head, chosen[0], f"against {chosen[0].name}")

    def to_dataframe(self) -> Any:
        """All versions as a pandas DataFrame: see `Listing.to_dataframe`."""
        return self.compare().to_dataframe()

    def show(self, view: Any, *, observe: Observe | None = None, **objects: Any) -> Any:
        """Show a view of the session; the session does not change.

        Args:
            view: a line such as "pareto --cost latency", or a `kdkit.views.View`.
            observe: callback that receives progress.
            objects: data and models that the view names, for this call only.

        Raises:
            KdError: there is no such view, or it can't be shown.
            Cancelled: `cancel` was called.

        >>> import torch
        >>> session = Session(torch.nn.Linear(4, 3), eval=(torch.eye(4), torch.arange(4) % 3), measures=("quality", "parameters"))
        >>> session.show("pareto --cost parameters").frontier[0].name
        '@base'
        """
        snapshot = copy.copy(self)
        snapshot.objects, snapshot._observe = self.objects.updated(objects, self.settings["batch_size"]), observe
        return showing.show(showing.read_view(view) if isinstance(view, str) else view, snapshot)

    @contextlib.contextmanager
    def working(self, title: str) -> Iterator[Context]:
        """For a view that works long: a context whose progress is observed and which `cancel` stops. No stage can run meanwhile.

        Args:
            title: what is computed, for progress messages.

        Raises:
            KdError: a stage is running.
        """
        with self._busy():
            yield self._context(title, self._observe)

    def __getattr__(self, name: str) -> Any:
        """Methods that views replaced: `session.pareto(...)` was `session.show("pareto ...")`."""
        method = None if name.startswith("_") else showing.replaced_method(name, self.show)
        if method is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return method

    def status(self) -> Status:
        """Versions with their figures, task, data and backend, and the techniques that fit next."""
        return Status(self.history, self.task.name if self.task else "", tuple(name for name in DATA if name in self.objects), self.settings["backend"])

    def __repr__(self) -> str:
        return repr(self.status())

    def _repr_html_(self) -> str:
        return self.status()._repr_html_()

    # moves in the history

    def undo(self) -> Version:
        """Move the head to the version that it was made from. Right after `drop`, bring back what was dropped instead."""
        if self._after_drop is not None and self._after_drop[0] is self.history:
            self.restore(self._after_drop[1])
            return self.head
        self.history = self.history.undo()
        return self.head

    def redo(self) -> Version:
        """Move the head back to where `undo` left it."""
        self.history = self.history.redo()
        return self.head

    def keep(self, version: Any, label: str) -> Version:
        """Give a version a label; another version that had it loses it."""
        chosen = self.version(version)
        self.history = self.history.labelled(chosen, checked(label))
        return self.version(chosen.number)

    def drop(self, version: Any, forever: bool = False) -> Listing:
        """Free a version's memory; its line remains while other versions were made from it.

        Args:
            version: the version.
            forever: whether it can't come back. Otherwise its weights are kept in a file until the process ends, for `restore` and `undo`.
        """
        with self._busy():
            chosen = self.version(version)
            after = self.history.without(chosen)
            if not forever:
                self._removed.keep(self.history, chosen)
            self.history = after
            self._after_drop = None if forever else (after, chosen.number)
        return self.status().listing

    @property
    def removed(self) -> tuple[Version, ...]:
        """The versions that `restore` can bring back, without their models."""
        return tuple(each.version for each in self._removed)

    def restore(self, version: Any = None) -> Version:
        """Bring back a version that was dropped, or that a run replaced.

        Args:
            version: "@label" or "@number" that it had; default: the last one removed.

        Raises:
            KdError: no such version was removed.

        >>> import torch
        >>> session = Session(torch.nn.Linear(8, 4), example=torch.zeros(1, 8), measures=("parameters",))
        >>> _ = session.run("decompose svd --ratio 0.5", label="thin"), session.drop("@thin")
        >>> session.restore("@thin").name
        '@thin'
        """
        with self._busy():
            removed = self._removed.find(None if version is None else f"@{version.number}" if isinstance(version, Version) else str(version))
            self.history = self._removed.restored(self.history, removed)
            self._removed.forget(removed.version.number)
        return self.version(removed.version.number)

    def began_with(self, model: Any) -> bool:
        """Whether the session began with the weights that a model has now; also of a model that a plugin converted, which can't be compared."""
        return not isinstance(model, nn.Module) or have_equal_tensors(self.original, unwrap_model(model))

    def pop(self, version: Any = None) -> nn.Module:
        """A copy of the version's model that is yours to change; default: the head's."""
        return private_copy(self.history.model_of(self.version(version)))

    # saving and loading

    def recipe(self, version: Any = None, anywhere: bool = False) -> Pipeline:
        """The stages that made a version, to run on another model or other data; bridges are inserted again when it runs.

        Args:
            version: default: the head.
            anywhere: the stages before a version that was loaded may name files and folders outside of the working directory.

        Raises:
            KdError: a stage of a version that was loaded is not installed here, or names a place outside of the working directory.
        """
        return recipe_of(self.history, self.version(version), anywhere)

    def code(self, version: Any = None) -> str:
        """The `%kd` cells that make a version again; default: the head."""
        return code_of(self.history, self.version(version))

    def save(self, path: str | Path, version: Any = None, force: bool = False) -> Path:
        """Write a version to a folder: structure, weights, recipe and report; no pickle, and no plugin needed to load it.

        Args:
            path: the folder; a path that ends in `.yaml` becomes a file with the recipe alone.
            version: default: the head.
            force: whether to replace a folder or file that holds another version. This session's own version of the same name is always replaced.

        Raises:
            KdError: the folder can't be written, or holds another version or something else.
        """
        chosen = self.version(version)
        replace_other = force or self._written.holds(path, chosen)
        if Path(path).suffix in (".yaml", ".yml"):
            written = self.recipe(chosen).save(path, replace_other)
        else:
            facts = facts_of(self.history, chosen, self.task.name if self.task else None, self.objects.example())
            codec = codec_named(chosen.storage.codec) if chosen.storage else None
            written = Path(folder.save(path, self.history.model_of(chosen), self.original, facts, chosen.storage, codec, replace_other))
        return self._written.remember(written, chosen)

    def load(self, path: str | Path, skeleton: Any = None) -> Version:
        """Load a saved version into this session and measure it here.

        Args:
            path: a folder that `save` wrote.
            skeleton: an instance of the model's class, or the class; needed only if kdkit can't find the class.

        Raises:
            KdError: the folder is damaged, newer, holds a pickle, or does not fit the skeleton.
        """
        with self._busy():
            loaded = load_version(path, self._skeleton(path) if skeleton is None else skeleton)
            with loaded.explain_failures():
                report = self._measured(loaded.model, storage=saved_storage(loaded.facts))
                version = loaded.describe(Version(self.history.next, loaded.model, report, traits_of(loaded.model)))
            self.history = self.history.grown([version], loaded.label)
            return self.head

    def _skeleton(self, path: str | Path) -> nn.Module | None:
        return self.original if canonical(folder.read(path)["skeleton"].get("class", "")) == path_of(type(self.original)) else None

    @classmethod
    def open(cls, path: str | Path, skeleton: Any = None, **given: Any) -> Session:
        """A new session that begins with a saved version.

        Args:
            path: a folder that `save` wrote.
            skeleton: as for `load`.
            given: data and settings, as for `Session`.
        """
        loaded = load_version(path, skeleton)
        with loaded.explain_failures():
            session = cls(loaded.model, **{"label": loaded.label or "base", **given})
        session.history = session.history.replaced(loaded.describe(session.head))
        if session.head.storage is not None:
            session.evaluate()  # its size is that of the stored form
        return session

    def export(self, path: str | Path, version: Any = None, force: bool = False, card: bool | None = None, licence: str = "") -> Path:
        """Write a version for use without kdkit: an `.onnx` file, a `.pt2` program of torch.export, or a folder for `from_pretrained`.

        Args:
            path: the file or folder.
            version: default: the head.
            force: whether to replace a file or folder. This session's own version of the same name is always replaced.
            card: whether to write a model card: `README.md` in a folder, a file with the suffix `.md` beside a file; default: in folders.
            licence: what the card states, such as "apache-2.0"; default: what the card of the base model states.

        Raises:
            KdError: the format is unknown, the version can't be exported to it, or something else has that name.
        """
        chosen = self.version(version)
        replace_other, target = force or self._written.holds(path, chosen), Path(path)
        wanted = not target.suffix if card is None else card
        text = write_card(self.history, chosen, target, licence, self.task.name if self.task else "") if wanted else ""
        written = export(self.history.model_of(chosen), target, self.objects.example(), replace_other, self.objects.get("tokenizer"), text)
        return self._written.remember(written, chosen)
