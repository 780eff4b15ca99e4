"""The session: what a user holds. Versions of a model, data, a teacher, and the stages that ran.

Its state is one immutable `History`, replaced by a single assignment once all is done; so a stage that fails, is
cancelled or interrupted leaves the session as it was.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from kdkit import store, tasks
from kdkit.agreement import Agreement, agreement, class_names
from kdkit.confusion import Confusion, confusion
from kdkit.context import Context, Progress
from kdkit.contract import Stage
from kdkit.data import Data, adopt_data, try_call
from kdkit.errors import KdError, did_you_mean
from kdkit.execution import make, raise_problems
from kdkit.exports import export
from kdkit.forecast import Plan, foresee
from kdkit.layers import Layers
from kdkit.measure import Report, Subject, measure, resize
from kdkit.models import adopt, private_copy, traits_of
from kdkit.modes import keeping_modes
from kdkit.objects import DATA, Objects
from kdkit.pareto import Pareto, pareto
from kdkit.pipeline import Pipeline, Planned
from kdkit.plugins import manager
from kdkit.seeding import seeded
from kdkit.sensitivity import Sensitivity, sensitivity
from kdkit.status import Status
from kdkit.summary import Summary
from kdkit.values import path_of
from kdkit.versions import History, Listing, Version, checked
from kdkit.weights import Weights, weights

if TYPE_CHECKING:
    from kdkit.backends import Backend

SETTINGS = ("task", "loss", "metric", "backend", "seed", "batch_size", "measures", "trackers")
"""What `set` takes beside objects."""


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
        trackers: names of loggers that hear of what happens; none when not said.
        label: of the first version.
        objects: more objects that stages may name.

    >>> import torch
    >>> session = Session(torch.nn.Linear(4, 3), eval=(torch.randn(8, 4), torch.arange(8) % 3), measures=("quality", "parameters"))
    >>> session.head.name
    '@base'
    """

    @keeping_modes
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
        trackers: tuple[str, ...] = (),
        label: str = "base",
        **objects: Any,
    ) -> None:
        label = checked(label)
        self.history = History()
        self.objects = Objects({}, self._model_named, batch_size)
        self.settings: dict[str, Any] = dict.fromkeys(SETTINGS) | {"backend": "cpu", "seed": 0, "batch_size": 32, "trackers": ()}
        self.task: tasks.Task | None = None
        self.trackers: dict[str, Any] = {}
        self._running = threading.Lock()
        self._cancelled = threading.Event()
        self._scratch = tempfile.TemporaryDirectory(prefix="kdkit-", ignore_cleanup_errors=True)
        given = {"train": train, "eval": eval, "calibration": calibration, "validation": validation, "example": example, "teacher": teacher, "tokenizer": tokenizer}
        given |= {"task": task, "loss": loss, "metric": metric, "backend": backend, "seed": seed, "batch_size": batch_size, "measures": measures}
        given |= {"trackers": trackers}
        self.original = private_copy(adopt(model)).eval()
        _check_names(given, objects)
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
            return self.history.same(name)
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

    @keeping_modes
    def set(self, **named: Any) -> Session:
        """Give the session data, a teacher, a tokenizer, settings, or any object under a name that stages can use.

        Raises:
            KdError: data that can't be adopted, or that the model can't be called with; an unknown setting's value.
        """
        settings = self.settings | {name: value for name, value in named.items() if name in SETTINGS}
        for name in ("measures", "trackers"):
            if isinstance(settings[name], str):
                settings[name] = (settings[name],)
        _check_settings(settings)
        # a tracker may hold a file or a connection: one that was on stays the same object
        trackers = {name: self.trackers.get(name) or manager().named("kdkit_trackers", name, "tracker") for name in settings["trackers"] or ()}
        objects = self.objects.having({name: value for name, value in named.items() if name not in SETTINGS}, settings["batch_size"])
        task = self._task_for(objects, settings)
        self.objects, self.settings, self.task, self.trackers = objects, settings, task, trackers
        return self

    def _task_for(self, objects: Objects, settings: Mapping[str, Any]) -> tasks.Task | None:
        example, named = objects.example(), settings["task"]
        if example is not None:
            try_call(self.original, example)
        elif named is None:
            return None
        found = named if named is not None else tasks.guess_task(self.original, example)  # type: ignore[arg-type]
        return tasks.task(found, loss=settings["loss"], metric=settings["metric"])

    def backend_for(self, model: nn.Module) -> Backend:
        """The session's backend, or the CPU for a model that it refuses."""
        chosen = manager().named("kdkit_backends", self.settings["backend"], "backend")
        return chosen if not chosen.refuses(model) else manager().named("kdkit_backends", "cpu", "backend")

    def _model_named(self, name: str) -> nn.Module:
        return self.original if name == "original" else self.history.model_of(self.version(name))

    # running stages

    @keeping_modes
    def plan(self, stages: Any, on: Any = None) -> Plan:
        """What `run` would do: the steps, bridges included, with predicted parameters, bytes and MACs. Runs nothing.

        Raises:
            KdError: what `run` would raise before it begins.
        """
        start = self.version(on)
        with self._idle():
            self._cancelled.clear()
            steps = self._planned(Pipeline.of(stages), start)
            return foresee(steps, self.history.model_of(start), start.name, self._context, self.objects.example())

    @keeping_modes
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
        pipeline, label = Pipeline.of(stages), checked(label) if label else ""
        seed = _whole("seed", next(value for value in (seed, pipeline.seed, self.settings["seed"]) if value is not None), 0)
        with self._idle():
            self._cancelled.clear()
            version = self.version(on)
            done: list[Version] = []
            groups = list(_groups(self._planned(pipeline, version)))
            for part, group in enumerate(groups, 1):
                try:
                    version = self._commit(group, version, seed, _placed(observe, part, len(groups)), label if part == len(groups) else "")
                except KdError as error:
                    if done:
                        error.with_hints(f"the steps before it are kept: {' '.join(each.name for each in done)}")
                    raise
                done.append(version)
            return version

    def _commit(self, group: list[Planned], version: Version, seed: int, observe: Callable[[Progress], None], label: str) -> Version:
        made: list[Version] = []
        for step in group:
            context = self._context(step.stage, observe, seed)

            def measured(model: nn.Module, parent: Version = version, context: Context = context) -> Report:
                return self._measured(model, parent, check_cancelled=context.check_cancelled)

            version = make(step, version, self.history.next + len(made), context, measured)
            made.append(version)
        self.history = self.history.grown(made, label)
        return self.head

    @contextlib.contextmanager
    def _idle(self) -> Iterator[None]:
        """What a block holds that adds or removes versions.

        Raises:
            KdError: another thread holds it.
        """
        if not self._running.acquire(blocking=False):
            raise KdError("a stage is running in this session", "wait for it, or cancel it first")
        try:
            yield
        finally:
            self._running.release()

    def cancel(self) -> None:
        """Ask the stage that is running to stop; it leaves the session as it was."""
        self._cancelled.set()

    def judge(self, stages: Any, on: Any = None, given: Mapping[str, Any] | None = None) -> list[list[Planned] | KdError]:
        """For each stage what it would run as, bridges first, or why it can't: what `run` says before it begins, of every stage at once.

        Args:
            stages, on: as for `run`.
            given: objects that the stages name and the session is yet to be given.
        """
        start, objects = self.version(on), self.objects.having(given or {}, self.settings["batch_size"])
        judged = Pipeline.of(stages).judge(start.traits, self._makers(start))
        return [found if isinstance(found, KdError) else self._judged(found, objects, None if number else start) for number, found in enumerate(judged)]

    def _judged(self, steps: list[Planned], objects: Objects, start: Version | None) -> list[Planned] | KdError:
        try:
            for step in steps:
                objects.check(step.stage, self.task)
            if start is not None:
                raise_problems(steps[0].stage, self.history.model_of(start), replace(self._context(steps[0].stage), objects=objects))
        except KdError as error:
            return error
        return steps

    def _planned(self, pipeline: Pipeline, start: Version) -> list[Planned]:
        if not pipeline.stages:
            raise KdError("there is no stage to run", "write one a line, such as prune channels --ratio 0.5")
        steps = pipeline.plan(start.traits, self._makers(start))
        for step in steps:
            self.objects.check(step.stage, self.task)
        raise_problems(steps[0].stage, self.history.model_of(start), self._context(steps[0].stage))
        return steps

    def _makers(self, version: Version) -> dict[str, str]:
        """Which of the stages that led to a version added or removed a trait, for messages."""
        made = [(each, each.stage) for each in self.history.lineage(version) if each.stage]
        return {trait: f"{stage.title} ({each.name})" for each, stage in made for trait in (*stage.adds, *stage.removes)}

    def _context(self, stage: Stage, observe: Callable[[Progress], None] | None = None, seed: int = 0) -> Context:
        return self._working(stage.title, observe, seed)

    def _working(self, title: str, observe: Callable[[Progress], None] | None = None, seed: int = 0) -> Context:
        return Context(
            task=self.task,  # type: ignore[arg-type]
            seed=seed,
            device="cuda" if self.settings["backend"] == "cuda" else "cpu",
            backend=self.settings["backend"],
            objects=self.objects,
            original=self.original,
            observe=observe or (lambda progress: None),
            cancelled=self._cancelled,
            scratch=self._scratch.name,
            stage=title,
            trackers=tuple(self.trackers.values()),
        )

    # measuring

    @keeping_modes
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
        # its label may be another one by now, where a second thread works
        self.history = self.history.replaced(replace(self.version(chosen), report=report))
        return report

    def compare(self, *versions: Any) -> Listing:
        """Versions side by side, each figure with its ratio to the first one's; all versions without arguments."""
        chosen = tuple(self.version(version) for version in versions) or self.versions
        return Listing(chosen, self.history.head, chosen[0], f"against {chosen[0].name}")

    def pareto(self, *versions: Any, quality: str = "", cost: str = "size") -> Pareto:
        """Which versions no other one beats in both quality and cost; of all versions without arguments.

        Args:
            versions: to look at.
            quality: name of a figure; the task's own metric when not said.
            cost: name of a figure, such as "latency" or "macs".

        Raises:
            KdError: no version has such a figure.
        """
        if not quality and self.task is None:
            raise KdError("pareto needs a figure of quality, and nothing of quality was measured", "%kd set --eval {data}, or --quality FIGURE")
        return pareto(tuple(self.version(version) for version in versions) or self.versions, quality or self.task.metric, cost)  # type: ignore[union-attr]

    @keeping_modes
    def layers(self, version: Any = None, patterns: Iterable[str] | str = ()) -> Layers:
        """The modules of a version as a tree, with what each holds and, where there is an example, the MACs of each.

        Args:
            version: the head when not said.
            patterns: of layers to mark, see `kdkit.patterns.match`.

        Raises:
            KdError: a pattern means no module.
        """
        chosen, example = self.version(version), self.objects.example()
        patterns = (patterns,) if isinstance(patterns, str) else patterns
        return Layers.of(self.history.model_of(chosen), chosen.name, patterns, None if example is None else resize(example, 1))

    @keeping_modes
    def sensitivity(
        self,
        version: Any = None,
        *,
        bits: int = 4,
        ratio: float | None = None,
        layers: Iterable[str] | str = (),
        items: int = 256,
        observe: Callable[[Progress], None] | None = None,
    ) -> Sensitivity:
        """How much quality each layer alone costs when its weights are disturbed; the version stays as it is.

        Args:
            version: the head when not said.
            bits: to which each layer's weights are rounded, symmetric, a step an output channel.
            ratio: share of each layer's smallest weights that are zeroed, instead of rounding.
            layers: patterns of the layers; all that have weights when not said.
            items: of the eval data to look at.
            observe: called with progress.

        Raises:
            KdError: there is no eval data, or the version has no float weights.
            Cancelled: `cancel` was called.
        """
        data = self._asked("eval", "sensitivity needs data to ask the model about")[1]
        layers = (layers,) if isinstance(layers, str) else layers
        with self._idle():
            self._cancelled.clear()
            chosen = self.version(version)
            model, context = self.history.model_of(chosen), self._working("sensitivity", observe)
            looked = data.take(_whole("items", items, 1))
            return sensitivity(model, chosen.name, looked, context, self.backend_for(model), bits=bits, ratio=ratio, layers=layers)

    def weights(self, before: Any = None, after: Any = None, layer: str = "") -> Weights:
        """How the weights of two versions lie: of one layer, or of all; zeros, distinct values, extremes.

        Args:
            before: a version; the first when not said.
            after: another one; the head when not said.
            layer: name or pattern, see `kdkit.patterns.match`.

        Raises:
            KdError: neither version has such a layer, or weights that can be looked at.
        """
        first = self.versions[0] if before is None else self.version(before)
        chosen = {version.number: version for version in (first, self.version(after))}.values()
        return weights([(version.name, self.history.model_of(version)) for version in chosen], layer)

    @keeping_modes
    def agreement(self, student: Any = None, teacher: Any = "teacher", data: Any = "eval") -> Agreement:
        """Where a version decides as a teacher does, where not, and which of the two is right; both run on the session's backend.

        Args:
            student: a version; the head when not said.
            teacher: a model, the name of one, or a version; where the session was given none, the model it began with.
            data: to ask both about: its name, or data in any form.

        Raises:
            KdError: there is no such model or data, or the two don't answer in the same form.
        """
        chosen = self.version(student)
        name, model = self._teaching(teacher)
        named, asked = self._asked(data, "agreement needs data to ask both models about")
        here = self.history.model_of(chosen)
        with self.backend_for(here).runner(here) as told, self.backend_for(model).runner(model) as taught:
            names = class_names(self.task, here, model, self.objects.get("tokenizer"))  # type: ignore[arg-type]
            return agreement(self.task, (chosen.name, told), (name, taught), asked, named, names)  # type: ignore[arg-type]

    @keeping_modes
    def confusion(self, version: Any = None, data: Any = "eval") -> Confusion:
        """Which class a version takes for which: labels against decisions.

        Args:
            version: the head when not said.
            data: with labels: its name, or data in any form.

        Raises:
            KdError: there is no such data, it has no labels, or the task has no classes.
        """
        chosen = self.version(version)
        named, asked = self._asked(data, "confusion needs data with labels")
        model = self.history.model_of(chosen)
        with self.backend_for(model).runner(model) as call:
            names = class_names(self.task, model, self.original, self.objects.get("tokenizer"))  # type: ignore[arg-type]
            return confusion(self.task, chosen.name, call, asked, named, names)  # type: ignore[arg-type]

    def _asked(self, data: Any, need: str) -> tuple[str, Data]:
        """Data by its name or in any form: how it is called, and the data."""
        held = self.objects.get(data) if isinstance(data, str) else data
        if held is None or self.task is None:
            raise KdError(f"{need}, and the session has no {data!r}", "%kd set --eval {loader}, or --data {loader}")
        return data if isinstance(data, str) else "new data", adopt_data(held, batch_size=self.settings["batch_size"])

    def _teaching(self, teacher: Any) -> tuple[str, nn.Module]:
        """A teacher by any name: how it is called, and the model."""
        if isinstance(teacher, str) and not teacher.startswith("@"):
            if self.objects.get(teacher) is None and teacher == "teacher":
                return "the original", self.original
            if self.objects.get(teacher) is None:
                raise KdError(f"there is no model {teacher!r}", did_you_mean(teacher, self.objects), f"%kd set --{teacher} {{{teacher}}}, or name a version: @base")
            return teacher, adopt(self.objects[teacher])
        if isinstance(teacher, str | int | Version):
            version = self.version(teacher)
            return version.name, self.history.model_of(version)
        return "the teacher", adopt(teacher)

    def _measured(
        self,
        model: nn.Module,
        parent: Version | None,
        data: Data | None = None,
        names: tuple[str, ...] | None = None,
        check_cancelled: Callable[[], None] = lambda: None,
    ) -> Report:
        held = data if data is not None else self.objects.get("eval")
        ancestor = self._subject(parent.model, held) if parent is not None and parent.model is not None else None
        subject: Subject = replace(self._subject(model, held, ancestor), check_cancelled=check_cancelled)
        with seeded(0):
            return measure(subject, names or self.settings["measures"])

    def _subject(self, model: nn.Module, data: Data | None, parent: Any = None) -> Any:
        return Subject(model=model, task=self.task, data=data, example=self.objects.example(), backend=self.backend_for(model), original=self.original, parent=parent)

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
        chosen = self.version(version)
        self.history = self.history.labelled(chosen, checked(label))
        return self.version(chosen.number)

    def drop(self, version: Any) -> Listing:
        """Free a version's memory; its line stays while others were made of it."""
        with self._idle():
            self.history = self.history.without(self.version(version))
        return self.status().listing

    def pop(self, version: Any = None) -> nn.Module:
        """The version's model, as a copy that is yours to change."""
        return private_copy(self.history.model_of(self.version(version)))

    # leaving and coming back

    def recipe(self, version: Any = None) -> Pipeline:
        """The stages that made a version, those before it was saved too, for another model or other data; bridges come by themselves.

        Raises:
            KdError: a stage of a version that was loaded is not installed here.
        """
        chosen = self.version(version)
        first, run = self._made_by(chosen)
        before = Pipeline.from_data(first.facts["recipe"], f"the recipe of {first.name}").stages if "recipe" in first.facts else ()
        return Pipeline((*before, *run), chosen.label, chosen.seed)

    def _made_by(self, version: Version) -> tuple[Version, tuple[Stage, ...]]:
        """What a version was begun with, and the stages that ran in this session since."""
        line = self.history.lineage(version)
        return line[0], tuple(each.stage for each in line if each.stage is not None and not each.inserted)

    def _recipe_data(self, version: Version) -> dict[str, Any]:
        """The recipe as plain data, which needs no plugin for the stages before a version was loaded."""
        first, run = self._made_by(version)
        data, before = Pipeline(run, version.label, version.seed).data(), first.facts.get("recipe")
        if not isinstance(before, dict):
            return data
        return data | {"distributions": {**(before.get("distributions") or {}), **data["distributions"]}, "steps": [*(before.get("steps") or ()), *data["steps"]]}

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

    @keeping_modes
    def save(self, path: str | Path, version: Any = None) -> Path:
        """Write a version to a folder: structure, weights, recipe and report; no pickle, and no plugin needed to load it.

        Args:
            path: the folder; with the suffix `.yaml`, a file that takes the recipe alone.
            version: the head when not said.

        Raises:
            KdError: the folder can't be written, or holds something else.
        """
        chosen = self.version(version)
        if Path(path).suffix in (".yaml", ".yml"):
            return self.recipe(chosen).save(path)
        facts = {
            "label": chosen.label,
            "recipe": self._recipe_data(chosen),
            "code": self.code(chosen),
            "report": chosen.report.as_data(),
            "traits": sorted(chosen.traits),
            "notes": list(chosen.notes),
            "task": getattr(self.task, "name", None),
            "seed": chosen.seed,
        }
        return Path(store.save(path, self.history.model_of(chosen), self.original, facts))

    @keeping_modes
    def load(self, path: str | Path, skeleton: Any = None) -> Version:
        """Bring a saved version into this session; it is measured here anew.

        Args:
            path: a folder that `save` wrote.
            skeleton: a fresh instance of the model's class, or the class; where kdkit can't find it by itself.

        Raises:
            KdError: the folder is damaged, newer, holds a pickle, or does not fit the skeleton.
        """
        with self._idle():
            model, facts = store.load(path, self._skeleton(path) if skeleton is None else skeleton)
            return self._adopt(model.eval(), str(facts.get("label") or ""), f"load {path}", facts)

    def _skeleton(self, path: str | Path) -> nn.Module | None:
        return self.original if store.read(path)["skeleton"].get("class") == path_of(type(self.original)) else None

    @classmethod
    @keeping_modes
    def open(cls, path: str | Path, skeleton: Any = None, **given: Any) -> Session:
        """A new session on a saved version.

        Args:
            path: a folder that `save` wrote.
            skeleton: as for `load`.
            given: data and settings, as for `Session`.
        """
        model, facts = store.load(path, skeleton)
        session = cls(model, **{"label": facts.get("label") or "base", **given})
        session.history = session.history.replaced(_told(session.head, facts, f"load {path}"))
        return session

    @keeping_modes
    def export(self, path: str | Path, version: Any = None) -> Path:
        """Write a version for use without kdkit: `.onnx`, or a folder for `from_pretrained`.

        Raises:
            KdError: the form is unknown, or the version can't take it.
        """
        return export(self.history.model_of(self.version(version)), Path(path), self.objects.example())

    def status(self) -> Status:
        """Where the session stands: versions, figures, and what fits next."""
        return Status(self)

    def summary(self, version: Any = None, *, quality: str = "", cost: str = "size") -> Summary:
        """The session as something to keep: how it stands, how a version was made, all versions' figures and frontier, notes and pictures.

        Args:
            version: whose line is told; the head when not said.
            quality, cost: figures of the frontier, see `pareto`.

        Raises:
            KdError: no version has such a figure.
        """
        return Summary.of(self, self.version(version), quality, cost)

    def __repr__(self) -> str:
        return repr(self.status())

    def _repr_html_(self) -> str:
        return self.status()._repr_html_()

    def _adopt(self, model: nn.Module, label: str, origin: str, facts: Mapping[str, Any] | None = None) -> Version:

        version = Version(self.history.next, model, self._measured(model, None), traits_of(model), origin=origin)
        self.history = self.history.grown([_told(version, facts or {}, origin)], label)
        return self.head


def _check_names(given: Mapping[str, Any], objects: Mapping[str, Any]) -> None:
    """Where a session has no data at all, an object named nearly like data was meant to be it.

    Raises:
        KdError: it was.
    """
    if any(given[name] is not None for name in DATA):
        return
    for name in objects:
        meant = did_you_mean(name, DATA)
        if meant:
            raise KdError(f"{name}= is not one of the names under which a session looks for data", meant, f"data: {', '.join(DATA)}")


def _check_settings(settings: Mapping[str, Any]) -> None:
    backend = manager().named("kdkit_backends", str(settings["backend"]), "backend")
    reason = backend.unavailable()
    if reason:
        raise KdError(f"backend {settings['backend']} can't be used here: {reason}", "%kd set --backend cpu")
    for name, least in (("seed", 0), ("batch_size", 1)):
        _whole(name, settings[name], least)
    if settings["measures"] is not None:
        known = [each.name for _, each in manager().contributions("kdkit_measures")]
        for name in settings["measures"]:
            if name not in known:
                raise KdError(f"no measure {name!r}", did_you_mean(name, known), f"measures: {', '.join(known)}")


def _whole(name: str, value: Any, least: int) -> int:
    """A whole number that torch can take too.

    Raises:
        KdError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
        raise KdError(f"--{name.replace('_', '-')} {value!r} is not a whole number from {least} up", "give one below 2**63")
    return value


def _groups(steps: list[Planned]) -> Iterator[list[Planned]]:
    """Each stage with the bridges inserted for it."""
    group: list[Planned] = []
    for step in steps:
        group.append(step)
        if not step.inserted:
            yield group
            group = []


def _placed(observe: Callable[[Progress], None] | None, part: int, parts: int) -> Callable[[Progress], None]:
    """Tells an observer which of the pipeline's stages it hears of."""
    return (lambda progress: None) if observe is None else (lambda progress: observe(replace(progress, part=part, parts=parts)))


def _told(version: Version, facts: Mapping[str, Any], origin: str) -> Version:

    return replace(version, origin=origin, facts=dict(facts), notes=tuple(facts.get("notes", ())), seed=int(facts.get("seed") or 0))
