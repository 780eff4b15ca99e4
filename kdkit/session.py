"""The session: what a user holds. Versions of a model, data, a teacher, and the stages that ran.

Its state is one immutable `History`, replaced by a single assignment once all is done; so a stage that fails, is
cancelled or interrupted leaves the session as it was.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from kdkit import store, tasks
from kdkit.checks import check_result
from kdkit.context import Context, Progress
from kdkit.data import Batch, Data, adopt_data, try_call
from kdkit.errors import Cancelled, KdError, did_you_mean
from kdkit.exports import export
from kdkit.forecast import Plan, foresee
from kdkit.measure import Report, Subject, measure
from kdkit.models import adopt, private_copy, share_unchanged, traits_of
from kdkit.pipeline import Pipeline, Planned, bridge, fits, missing_packages, references
from kdkit.plugins import manager
from kdkit.seeding import seeded
from kdkit.stage import Stage
from kdkit.versions import History, Listing, Version

if TYPE_CHECKING:
    from kdkit.backends import Backend

DATA = ("train", "eval", "calibration", "validation", "example")
"""Names under which the session keeps data that stages and measures look for."""

SETTINGS = ("task", "loss", "metric", "backend", "seed", "batch_size", "measures")


@dataclass(frozen=True)
class Event:
    """What happened: kind is "started", "progress", "finished", "failed" or "cancelled"."""

    kind: str
    stage: Stage
    progress: Progress | None = None
    version: Version | None = None
    error: BaseException | None = None


class Session:
    """A model, its data, and every version that stages made of it.

    Args:
        model: an nn.Module in memory; it is copied and never changed.
        train, eval, calibration, validation: data in any form (see `kdkit.data.adopt_data`); labels are optional.
        example: one batch of inputs, where there is no data.
        teacher: a model to learn from; the model itself as it was at first, when not said.
        tokenizer: for language models.
        task: name of a task, or a `Task`; guessed from the model and the data when not said.
        loss: callable(prediction, labels) instead of the task's own.
        metric: callable(predictions, labels) -> float instead of the task's own.
        backend: where versions run and are measured: "cpu", "cpu-bf16", "cuda", "int8".
        seed: of every stage, unless `run` is told another.
        batch_size: for data that comes as one array.
        measures: names of what to measure after each stage; everything when not said.
        label: of the first version.
        objects: more objects that stages may name.

    >>> import torch
    >>> session = Session(torch.nn.Linear(4, 3), eval=(torch.randn(8, 4), torch.arange(8) % 3), measures=("quality", "parameters"))
    >>> session.head.name
    '@base'
    """

    def __init__(
        self,
        model: Any,
        *,
        train: Any = None,
        eval: Any = None,
        calibration: Any = None,
        validation: Any = None,
        example: Any = None,
        teacher: Any = None,
        tokenizer: Any = None,
        task: Any = None,
        loss: Callable | None = None,
        metric: Callable | None = None,
        backend: str = "cpu",
        seed: int = 0,
        batch_size: int = 32,
        measures: tuple[str, ...] | None = None,
        label: str = "base",
        **objects: Any,
    ) -> None:

        self.history = History()
        self.objects: dict[str, Any] = {}
        self.settings: dict[str, Any] = dict.fromkeys(SETTINGS) | {"backend": "cpu", "seed": 0, "batch_size": 32}
        self.task: tasks.Task | None = None
        self._running = threading.Lock()
        self._cancelled = threading.Event()
        self._scratch = tempfile.TemporaryDirectory(prefix="kdkit-", ignore_cleanup_errors=True)
        given = {"train": train, "eval": eval, "calibration": calibration, "validation": validation, "example": example, "teacher": teacher, "tokenizer": tokenizer}
        given |= {"task": task, "loss": loss, "metric": metric, "backend": backend, "seed": seed, "batch_size": batch_size, "measures": measures}
        self.original = private_copy(adopt(model)).eval()
        self.set(**{name: value for name, value in (given | objects).items() if value is not None})
        self._adopt(self.original, label, f"use {type(self.original).__name__}")

    # what the session knows

    @property
    def versions(self) -> tuple[Version, ...]:
        """All versions, in the order they were made."""
        return tuple(self.history)

    @property
    def head(self) -> Version:
        """The version the next stage works on."""
        return self.history.versions[self.history.head]

    def version(self, name: str | int | Version | None = None) -> Version:
        """A version by "@label", "@number", "@head", "@-1", "@best"; the head without a name.

        Raises:
            KdError: there is no such version.
        """
        if isinstance(name, Version):
            return self.history.find(name.number)
        if name is None:
            return self.head
        if str(name) in ("@best", "best") and not any(version.label == "best" for version in self.history):
            return self._best()
        return self.history.find(name)

    __getitem__ = version

    def _best(self) -> Version:
        if self.task is None:
            raise KdError("no version is best: nothing of quality was measured", "%kd set --eval {data}")
        scored = [version for version in self.history if version.report.get(self.task.metric) is not None]
        if not scored:
            raise KdError(f"no version has a figure {self.task.metric!r}", "%kd set --eval {labelled_data}, then %kd eval")
        sign = 1 if self.task.better == "higher" else -1
        return max(scored, key=lambda version: sign * version[self.task.metric])  # type: ignore[union-attr]

    def set(self, **named: Any) -> Session:
        """Give the session data, a teacher, a tokenizer, settings, or any object under a name that stages can use.

        Raises:
            KdError: data that can't be adopted, or that the model can't be called with; an unknown setting's value.
        """
        objects, settings = dict(self.objects), dict(self.settings)
        settings |= {name: value for name, value in named.items() if name in SETTINGS}
        for name, value in named.items():
            if name not in SETTINGS:
                objects[name] = self._adopted(name, value, settings["batch_size"])
        _check_settings(settings)
        task = self._task_for(objects, settings)
        self.objects, self.settings, self.task = objects, settings, task
        return self

    def _adopted(self, name: str, value: Any, batch_size: int) -> Any:

        try:
            if name in DATA:
                return adopt_data(value, batch_size=batch_size)
            return adopt(value) if name == "teacher" else value
        except KdError as error:
            raise KdError(f"--{name}: {error.message}", *error.hints) from error

    def _task_for(self, objects: Mapping[str, Any], settings: Mapping[str, Any]) -> tasks.Task | None:

        example = _example(objects)
        if example is not None:
            try_call(self.original, example)
        named = settings["task"]
        if named is None and example is None:
            return None
        found = tasks.guess_task(self.original, example) if named is None else tasks.task(named)
        return tasks.task(found, loss=settings["loss"], metric=settings["metric"])

    def backend_for(self, model: nn.Module) -> Backend:
        """The session's backend, or the CPU for a model that it refuses."""
        chosen = manager().named("kdkit_backends", self.settings["backend"], "backend")
        return chosen if not chosen.refuses(model) else manager().named("kdkit_backends", "cpu", "backend")

    # running stages

    def plan(self, stages: Any, on: Any = None) -> Plan:
        """What `run` would do: the steps, bridges included, with predicted parameters, bytes and MACs. Runs nothing.

        Raises:
            KdError: what `run` would raise before it begins.
        """

        start = self.version(on)
        steps = self._planned(Pipeline.of(stages), start)
        return foresee(steps, self.history.model_of(start), start.name, lambda stage: self._context(stage), _example(self.objects))

    def run(self, stages: Any, *, on: Any = None, label: str = "", seed: int | None = None, observe: Callable[[Progress], None] | None = None) -> Version:
        """Run stages, one after another, each on a private copy; commit each that succeeds; return the last version.

        Args:
            stages: a stage, lines of text, a `Pipeline`, or a list of these.
            on: the version to begin with; the head when not said.
            label: for the last version.
            seed: instead of the session's.
            observe: called with progress.

        Raises:
            KdError: an order that can't be, a need that is not met, or a stage that failed; the session is then as it was
                before the stage that failed.
            Cancelled: `cancel` was called.
        """
        pipeline = Pipeline.of(stages)
        seed = next(value for value in (seed, pipeline.seed, self.settings["seed"]) if value is not None)
        with self._alone():
            version = self.version(on)
            steps = self._planned(pipeline, version)
            done: list[Version] = []
            group: list[Version] = []
            for step in steps:
                try:
                    version = self._make(step, version, seed, observe, self.history.next + len(group))
                except KdError as error:
                    raise error.with_hints(_kept(done)) if done else error
                group.append(version)
                if not step.inserted:
                    self.history = self.history.grown(group, label if step is steps[-1] else "")
                    done.append(self.head)
                    group = []
            return self.head

    def cancel(self) -> None:
        """Ask the stage that is running to stop; it leaves the session as it was."""
        self._cancelled.set()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._running.acquire(blocking=False):
            raise KdError("a stage is running in this session", "wait for it, or cancel it first")
        try:
            self._cancelled.clear()
            yield
        finally:
            self._running.release()

    def _planned(self, pipeline: Pipeline, start: Version) -> list[Planned]:
        if not pipeline.stages:
            raise KdError("there is no stage to run", "write one a line, such as prune channels --ratio 0.5")
        makers = {trait: f"{version.stage.id.replace('.', ' ', 1)} ({version.name})" for version in self.history.lineage(start) if version.stage for trait in (*version.stage.adds, *version.stage.removes)}
        steps = pipeline.plan(start.traits, makers)
        for step in steps:
            self._check_needs(step.stage)
        model = self.history.model_of(start)
        problems = list(_problems(steps[0].stage, model, self._context(steps[0].stage)))
        if problems:
            raise KdError(f"{_title(steps[0].stage)}: {problems[0]}", *problems[1:])
        return steps

    def _check_needs(self, stage: Stage) -> None:
        needs, title = stage.needed(), _title(stage)
        absent = missing_packages(needs)
        if absent:
            raise KdError(f"{title} needs {', '.join(absent)}, which is not installed", f"pip install {' '.join(name.replace('_', '-') for name in absent)}")
        for flag, kind, name in references(stage):
            self._check_reference(title, flag, kind, name)
        if (needs.example or needs.calibration) and _example(self.objects) is None:
            raise KdError(f"{title} needs {'calibration data' if needs.calibration else 'one batch of inputs'}, and the session has no data", "%kd set --calibration {batches}; labels are not needed")
        if needs.tokenizer and self.objects.get("tokenizer") is None:
            raise KdError(f"{title} needs a tokenizer", "%kd set --tokenizer {tokenizer}")
        if needs.labels:
            self._check_labels(title, getattr(stage, "data", "train"))

    def _check_reference(self, title: str, flag: str, kind: str, name: str) -> None:
        if kind == "model" and (name.startswith("@") or (name in ("teacher", "original"))):
            if name.startswith("@"):
                self.history.model_of(self.version(name))
            return
        if self.objects.get(name) is None:
            noun = {"data": "data", "model": "a model", "function": "a function"}.get(kind, "an object")
            hints = [did_you_mean(name, self.objects), f"%kd set --{name.replace('_', '-')} {{{name}}}" if kind == "data" else f"{flag} {{your_{kind}}} hands it over"]
            raise KdError(f"{title} {flag} {name}: needs {noun}, and the session has none of that name", *hints)
        if kind == "data":
            self.objects[name] = self._adopted(name, self.objects[name], self.settings["batch_size"]) if name in DATA else _as_data(self.objects[name], self.settings["batch_size"], flag)

    def _check_labels(self, title: str, name: str) -> None:
        data = self.objects.get(name)
        if data is None:
            raise KdError(f"{title} needs labelled data to train on, and the session has none", "%kd set --train {loader}")
        if not data.labelled and getattr(self.task, "needs_labels", True):
            raise KdError(f"{title} needs labels, and {name} has none", "pass pairs of inputs and labels, or a technique that learns from a teacher alone")

    def _context(self, stage: Stage, observe: Callable[[Progress], None] | None = None, seed: int = 0) -> Context:
        return Context(
            task=self.task,  # type: ignore[arg-type]
            seed=seed,
            device="cuda" if self.settings["backend"] == "cuda" else "cpu",
            backend=self.settings["backend"],
            objects=_Objects(self),
            original=self.original,
            observe=observe or (lambda progress: None),
            cancelled=self._cancelled,
            scratch=self._scratch.name,
            stage=_title(stage),
        )

    def _make(self, step: Planned, parent: Version, seed: int, observe: Callable[[Progress], None] | None, number: int) -> Version:
        stage = step.stage
        context = self._context(stage, self._observer(stage, observe), seed)
        self._tell(Event("started", stage))
        began = time.perf_counter()
        try:
            with seeded(seed):
                model = self._transformed(stage, parent, context)
            seconds = time.perf_counter() - began
            report = self._measured(model, parent)
        except BaseException as error:
            self._tell(Event("cancelled" if isinstance(error, (Cancelled, KeyboardInterrupt)) else "failed", stage, error=error))
            raise
        traits = step.traits
        version = Version(number, model, report, traits, "", stage, parent.number, tuple(context.notes), seed, step.inserted, seconds=seconds)
        self._tell(Event("finished", stage, version=version))
        return version

    def _transformed(self, stage: Stage, parent: Version, context: Context) -> nn.Module:

        before = self.history.model_of(parent) if parent.model is None else parent.model
        problems = list(_problems(stage, before, context))
        if problems:
            raise KdError(f"{_title(stage)}: {problems[0]}", *problems[1:])
        try:
            made = manager().hook.kdkit_run_stage(stage=stage, model=private_copy(before), context=context)
        except KdError:
            raise
        except Exception as error:
            raise KdError(f"{_title(stage)} failed: {type(error).__name__}: {error}", *self._hints(error, stage), f"offered by {_source(stage)}; the session is as it was") from error
        check_result(stage, _source(stage), made, before, parent.traits, self.task, _example(self.objects))
        made.eval()
        share_unchanged(made, before)
        return made

    def _hints(self, error: Exception, stage: Stage) -> list[str]:
        answers = manager().each("kdkit_error_hints", _complain, error=error, stage=stage)
        return [str(hint) for answer in answers for hint in answer or ()]

    def _observer(self, stage: Stage, observe: Callable[[Progress], None] | None) -> Callable[[Progress], None]:
        def heard(progress: Progress) -> None:
            if observe is not None:
                observe(progress)
            self._tell(Event("progress", stage, progress))

        return heard

    def _tell(self, event: Event) -> None:
        manager().each("kdkit_event", _complain, event=event)

    # measuring

    def evaluate(self, version: Any = None, data: Any = None) -> Report:
        """Measure a version again and keep the report with it; on other data the figures of quality are only returned.

        Args:
            version: the head when not said.
            data: new data, in any form.
        """

        chosen = self.version(version)
        model = self.history.model_of(chosen)
        if data is not None:
            return self._measured(model, None, adopt_data(data, batch_size=self.settings["batch_size"]), ("quality", "agreement"))
        parent = self.history.versions[chosen.parent] if chosen.parent is not None else None
        report = self._measured(model, parent)

        self.history = self.history.replaced(replace(chosen, report=report))
        return report

    def compare(self, *versions: Any) -> Listing:
        """Versions side by side, each figure with its ratio to the first one's; all versions without arguments."""
        chosen = tuple(self.version(version) for version in versions) or self.versions
        return Listing(chosen, self.history.head, chosen[0], f"against {chosen[0].name}")

    def _measured(self, model: nn.Module, parent: Version | None, data: Data | None = None, names: tuple[str, ...] | None = None) -> Report:

        held = data if data is not None else self.objects.get("eval")
        ancestor = self._subject(parent.model, held) if parent is not None and parent.model is not None else None
        subject: Subject = self._subject(model, held, ancestor)
        with seeded(0):
            return measure(subject, names or self.settings["measures"])

    def _subject(self, model: nn.Module, data: Data | None, parent: Any = None) -> Any:

        return Subject(model=model, task=self.task, data=data, example=_example(self.objects), backend=self.backend_for(model), original=self.original, parent=parent)

    # moving about

    def undo(self) -> Version:
        """Back to what the head was made of."""
        self.history = self.history.undo()
        return self.head

    def redo(self) -> Version:
        """Forward to what `undo` left."""
        self.history = self.history.redo()
        return self.head

    def keep(self, version: Any, label: str) -> Version:
        """Give a version a label; another version that had it goes without."""
        if not label or label.lstrip("-").isdigit() or label in ("head", "best") or not label.replace("-", "_").replace(".", "_").isidentifier():
            raise KdError(f"{label!r} can't be a label", "use letters, digits, - and _; not a number, head or best")
        chosen = self.version(version)
        self.history = self.history.labelled(chosen, label)
        return self.version(chosen.number)

    def drop(self, version: Any) -> Listing:
        """Free a version's memory; its line stays while others were made of it."""
        self.history = self.history.without(self.version(version))
        return self.status().listing

    def pop(self, version: Any = None) -> nn.Module:
        """The version's model, as a copy that is yours to change."""

        return private_copy(self.history.model_of(self.version(version)))

    # leaving and coming back

    def recipe(self, version: Any = None) -> Pipeline:
        """The stages that made a version, for another model or other data; bridges are left out, they come by themselves."""
        chosen = self.version(version)
        stages = [each.stage for each in self.history.lineage(chosen) if each.stage is not None and not each.inserted]
        return Pipeline(tuple(stages), chosen.label, chosen.seed)

    def code(self, version: Any = None) -> str:
        """The `%kd` cells that would make a version again."""
        chosen = self.version(version)
        line = [each for each in self.history.lineage(chosen) if not each.inserted]
        cells: list[str] = [] if line[0].stage else [f"# {line[0].name}: {line[0].origin}"]
        for each in line:
            if each.stage is None:
                previous = each
                continue
            options = f"--on {previous.name} --seed {each.seed}" + (f" --as {each.label}" if each.label and "\n" not in each.stage.line() else "")
            cells.append(f"%%kd {each.label or each.number} {options}\n{each.stage.line()}" if "\n" in each.stage.line() else f"%kd {each.stage.line()} {options}")
            previous = each
        return "\n".join(cells)

    def save(self, path: str | Path, version: Any = None) -> Path:
        """Write a version to a folder: structure, weights, recipe and report; no pickle, and no plugin needed to load it.

        Raises:
            KdError: the folder can't be written, or holds something else.
        """

        chosen = self.version(version)
        facts = {
            "label": chosen.label,
            "recipe": self.recipe(chosen).data(),
            "code": self.code(chosen),
            "report": chosen.report.as_data(),
            "traits": sorted(chosen.traits),
            "notes": list(chosen.notes),
            "task": getattr(self.task, "name", None),
            "seed": chosen.seed,
        }
        return Path(store.save(path, self.history.model_of(chosen), self.original, facts))

    def load(self, path: str | Path, skeleton: Any = None) -> Version:
        """Bring a saved version into this session; it is measured here anew.

        Args:
            path: a folder that `save` wrote.
            skeleton: a fresh instance of the model's class, or the class; where kdkit can't find it by itself.

        Raises:
            KdError: the folder is damaged, newer, holds a pickle, or does not fit the skeleton.
        """

        model, facts = store.load(path, skeleton=self.original if skeleton is None and _needs_skeleton(path) else skeleton)
        return self._adopt(model.eval(), str(facts.get("label") or ""), f"load {path}", facts)

    @classmethod
    def open(cls, path: str | Path, skeleton: Any = None, **given: Any) -> Session:
        """A new session on a saved version.

        Args:
            path: a folder that `save` wrote.
            skeleton: as for `load`.
            given: data and settings, as for `Session`.
        """

        model, facts = store.load(path, skeleton=skeleton)
        session = cls(model, **({"label": facts.get("label") or "base"} | given))
        session.history = session.history.replaced(_told(session.head, facts, f"load {path}"))
        return session

    def export(self, path: str | Path, version: Any = None) -> Path:
        """Write a version for use without kdkit: `.onnx`, or a folder for `from_pretrained`.

        Raises:
            KdError: the form is unknown, or the version can't take it.
        """

        return export(self.history.model_of(self.version(version)), Path(path), _example(self.objects))

    def status(self) -> Status:
        """Where the session stands: versions, figures, and what fits next."""
        return Status(self)

    def __repr__(self) -> str:
        return repr(self.status())

    def _repr_html_(self) -> str:
        return self.status()._repr_html_()

    def _adopt(self, model: nn.Module, label: str, origin: str, facts: Mapping[str, Any] | None = None) -> Version:

        version = Version(self.history.next, model, self._measured(model, None), traits_of(model), origin=origin)
        self.history = self.history.grown([_told(version, facts or {}, origin)], label)
        return self.head


@dataclass(frozen=True)
class Status:
    """Where a session stands."""

    session: Session

    @property
    def listing(self) -> Listing:
        """The versions that are held."""
        history = self.session.history
        return Listing(tuple(version for version in history if version.model is not None), history.head, caption=self.caption)

    @property
    def caption(self) -> str:
        """Task, data and backend in one line."""
        session = self.session
        task = f"task {session.task.name}" if session.task else "no task yet: no data"
        data = ", ".join(name for name in DATA if session.objects.get(name) is not None) or "none"
        return f"{task}; data: {data}; backend {session.settings['backend']}; * is the head"

    @property
    def next(self) -> list[str]:
        """Techniques that could follow the head now, without a bridge, as "family technique"."""

        return [id.replace(".", " ", 1) for id, stage in manager().stages().items() if not stage.bridge and _fits_class(stage, self.session.head.traits)]

    def __repr__(self) -> str:
        return f"{self.listing!r}\nnext: {', '.join(self.next) or 'nothing fits'}"

    def _repr_html_(self) -> str:

        return f"{self.listing._repr_html_()}<p>next: {escape(', '.join(self.next) or 'nothing fits')}</p>"


class _Objects(Mapping[str, Any]):
    """The session's objects by name; `@label` is a version's model, "original" the first one."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getitem__(self, name: str) -> Any:
        if name.startswith("@"):
            return self._session.history.model_of(self._session.version(name))
        if name == "original":
            return self._session.original
        return self._session.objects[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._session.objects)

    def __len__(self) -> int:
        return len(self._session.objects)


def _fits_class(stage: type[Stage], traits: frozenset[str]) -> bool:

    return fits(stage, traits) or bridge(stage, traits) is not None


def _check_settings(settings: Mapping[str, Any]) -> None:
    backend = manager().named("kdkit_backends", settings["backend"], "backend")
    reason = backend.unavailable()
    if reason:
        raise KdError(f"backend {settings['backend']} can't be used here: {reason}", "%kd set --backend cpu")
    for name, least in (("seed", 0), ("batch_size", 1)):
        if not isinstance(settings[name], int) or isinstance(settings[name], bool) or settings[name] < least:
            raise KdError(f"--{name.replace('_', '-')} {settings[name]!r} is not a whole number from {least} up")
    if settings["measures"] is not None:
        known = [measure.name for _, measure in manager().contributions("kdkit_measures")]
        for name in settings["measures"]:
            if name not in known:
                raise KdError(f"no measure {name!r}", did_you_mean(name, known), f"measures: {', '.join(known)}")


def _example(objects: Mapping[str, Any]) -> Batch | None:
    for name in ("example", "eval", "train", "calibration"):
        if objects.get(name) is not None:
            return objects[name].example()
    return None


def _as_data(obj: Any, batch_size: int, flag: str) -> Data:

    try:
        return adopt_data(obj, batch_size=batch_size)
    except KdError as error:
        raise KdError(f"{flag}: {error.message}", *error.hints) from error


def _problems(stage: Stage, model: nn.Module, context: Context) -> Iterator[str]:
    try:
        yield from stage.check(model, context)
    except KdError:
        raise
    except Exception as error:
        raise KdError(f"{_title(stage)}: its check raised {type(error).__name__}: {error}", f"offered by {_source(stage)}; nothing was run") from error


def _title(stage: Stage) -> str:
    return stage.id.replace(".", " ", 1)


def _source(stage: Stage) -> str:
    return manager().provider(stage.id).source if stage.id != "together" else "kdkit"


def _kept(done: list[Version]) -> str:
    return f"the steps before it are kept: {' '.join(version.name for version in done)}"


def _told(version: Version, facts: Mapping[str, Any], origin: str) -> Version:

    return replace(version, origin=origin, facts=dict(facts), notes=tuple(facts.get("notes", ())), seed=int(facts.get("seed") or 0))


def _complain(message: str) -> None:
    warnings.warn(message, stacklevel=2)

