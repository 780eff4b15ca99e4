"""The verbs of `%kd`, each declared once: its fields are its options, its docstring its help, `run` its work.

The parser, help, completion and `%kd?` read these declarations; a new subclass of `Verb` is a new verb.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kdkit.contract import Settings, param
from kdkit.errors import KdError, did_you_mean
from kdkit.notebook.page import Page, Source, Written
from kdkit.pipeline import Pipeline
from kdkit.plugins import manager
from kdkit.table import Table

if TYPE_CHECKING:
    from kdkit.notebook.desk import Desk
    from kdkit.session import Session


class Line(Settings):
    """What every line may say."""

    o: str | None = param(None, "variable that takes the result")
    quiet: bool = param(False, "show no progress")
    debug: bool = param(False, "show an error with its whole traceback; alone, the last error")

    def model_post_init(self, context: Any) -> None:
        if self.o is not None and not self.o.isidentifier():
            raise KdError(f"-o {self.o!r} is not the name of a variable")


class Running(Settings):
    """How stages are run."""

    on: str | None = param(None, "version to begin with; the head when not said", refers="version")
    as_: str | None = param(None, "label for the version that is made")
    seed: int | None = param(None, "instead of the session's", ge=0)
    dry_run: bool = param(False, "only judge the order and predict parameters, bytes and MACs")


class Verb(Settings):
    """A word that begins a `%kd` line."""

    places: ClassVar[tuple[str, ...]] = ()
    """Fields that may be given by position, in order."""
    sample: ClassVar[str] = ""
    """A line that shows it."""
    pane: ClassVar[str] = ""
    """Title of the wizard's tab that has a form for it."""

    @classmethod
    def word(cls) -> str:
        """As it is written."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", cls.__name__).lower()

    def run(self, desk: Desk) -> Any:
        """Do the work and return what is shown."""
        raise NotImplementedError


def verbs() -> dict[str, type[Verb]]:
    """Every verb by its word."""
    from kdkit.notebook import pictures  # noqa: F401  (it declares verbs too)

    return {verb.word(): verb for verb in Verb.__subclasses__()}


@dataclass(frozen=True)
class Apply:
    """Run stages: what a FAMILY TECHNIQUE line, a `%%kd` cell and a recipe ask for."""

    pipeline: Pipeline
    running: Running

    def run(self, desk: Desk) -> Any:
        running = self.running
        with desk.handed_over():
            if running.dry_run:
                return desk.session.plan(self.pipeline, on=running.on)
            with desk.progress() as observe:
                return desk.session.run(self.pipeline, on=running.on, label=running.as_ or "", seed=running.seed, observe=observe)


class Status(Verb):
    """Where am I: versions, their figures, and what fits next."""

    sample: ClassVar = "%kd"

    def run(self, desk: Desk) -> Any:
        if desk.has_session:
            return desk.session.status()
        return Page("There is no model yet.", Source("%kd use your_model --train {loader} --eval {loader}\n%kd help"))


class Given(Settings):
    """What a session can be given beside its model."""

    train: Any = param(None, "data to train on", refers="data")
    eval: Any = param(None, "held-out data to measure quality on", refers="data")
    calibration: Any = param(None, "data to observe the model on; labels are not needed", refers="data")
    validation: Any = param(None, "data to choose the best epoch on", refers="data")
    example: Any = param(None, "one batch of inputs, where there is no data", refers="data")
    teacher: Any = param(None, "a model to learn from", refers="model")
    tokenizer: Any = param(None, "of a language model", refers="object")
    task: Any = param(None, "a task or the name of one; guessed when not said", refers="function")
    loss: Any = param(None, "loss(prediction, labels) instead of the task's", refers="function")
    metric: Any = param(None, "metric(predictions, labels) instead of the task's", refers="function")
    measures: tuple[str, ...] | None = param(None, "what to measure after each stage; everything when not said")
    trackers: tuple[str, ...] = param((), "loggers that hear of what happens, which plugins bring; --no-trackers turns them off")
    backend: str | None = param(None, "where versions run and are measured: cpu, cuda, int8, ...")
    seed: int | None = param(None, "of every stage", ge=0)
    batch_size: int | None = param(None, "for data that comes as one array", ge=1)
    others: Any = param(None, "any other object, under the name by which stages ask for it", refers="others")

    @classmethod
    def offers(cls, parameter: str) -> Iterable[str]:
        hook = {"task": "kdkit_tasks", "measures": "kdkit_measures", "backend": "kdkit_backends"}.get(parameter)
        return [record.name for _, record in manager().contributions(hook)] if hook else ()

    def said(self) -> dict[str, Any]:
        """What was given, by name."""
        said = {name: getattr(self, name) for name in Given.model_fields if name in self.model_fields_set}
        return said | (said.pop("others", None) or {})


class Use(Given, Verb):
    """Take a model that is in memory, and what belongs to it; the variable itself is never changed.

    Objects are named as in the notebook, or stand in braces as any Python expression: `{loaders['train']}`.
    """

    places: ClassVar = ("model",)
    sample: ClassVar = "%kd use net --train {train} --eval {val} --teacher {big}"

    model: Any = param(..., "an nn.Module, or what a plugin can make one of", refers="model")
    as_: str = param("base", "label of the first version")

    def run(self, desk: Desk) -> Session:
        from kdkit.session import Session

        given = self.said()
        session = Session(self.model, label=self.as_, **given)
        desk.begin(session, given)
        return session


class Set(Given, Verb):
    """Give the session data, a teacher, settings, or any object under a name; what is not said stays, `{None}` takes away."""

    sample: ClassVar = "%kd set --backend int8 --calibration {batches}"

    def run(self, desk: Desk) -> Session:
        given = self.said()
        desk.session.set(**given)
        desk.remember(given)
        return desk.session


class List(Verb):
    """The techniques there are, of all families or of one: what they do, what they need, who brings them."""

    places: ClassVar = ("family",)
    sample: ClassVar = "%kd list prune"

    family: str | None = param(None, "such as prune", refers="family")

    def run(self, desk: Desk) -> Table:
        from kdkit.notebook.help import techniques

        return techniques(self.family)


class Help(Verb):
    """How to use a verb, a family or a technique."""

    places: ClassVar = ("topic",)
    sample: ClassVar = "%kd help prune channels"

    topic: tuple[str, ...] = param((), "a verb, a family, or a family and a technique", refers="topic")

    def run(self, desk: Desk) -> Any:
        from kdkit.notebook.help import about

        return about(self.topic)


class Run(Running, Verb):
    """Run a recipe: the stages that a YAML file names, in order."""

    places: ClassVar = ("recipe",)
    sample: ClassVar = "%kd run small.yaml --on @base --as small"

    recipe: str = param(..., "YAML file that session.recipe().save(path) wrote", refers="path")

    def run(self, desk: Desk) -> Any:
        pipeline = Pipeline.load(self.recipe)
        running = Running(**{name: getattr(self, name) for name in Running.model_fields} | {"as_": self.as_ or pipeline.name or None})
        return Apply(pipeline, running).run(desk)


class Compare(Verb):
    """Versions side by side, each figure with its ratio to the first one's; all of them when none is named."""

    places: ClassVar = ("versions",)
    sample: ClassVar = "%kd compare @base @slim --by size"
    pane: ClassVar = "Compare"

    versions: tuple[str, ...] = param((), "the versions", refers="version")
    by: str | None = param(None, "figure by which they are sorted, the best first", refers="figure")
    all: bool = param(False, "every figure that was measured, not only the headline ones")

    def run(self, desk: Desk) -> Any:
        listing = desk.session.compare(*self.versions)
        known = listing.figures
        if self.all:
            listing = replace(listing, also=tuple(known))
        if self.by is None:
            return listing
        if self.by not in known:
            raise KdError(f"compare: no version has a figure {self.by!r}", did_you_mean(self.by, known), f"figures: {' '.join(known)}")
        having = sorted((each for each in listing.versions if self.by in each.report), key=self._rank)
        return replace(listing, versions=(*having, *(each for each in listing.versions if self.by not in each.report)), also=(*listing.also, self.by))

    def _rank(self, version: Any) -> float:
        figure = version.report[self.by]
        return figure.value if figure.better == "lower" else -figure.value


class Eval(Verb):
    """Measure a version again, or its quality on new data."""

    places: ClassVar = ("version",)
    sample: ClassVar = "%kd eval @slim --data {new}"

    version: str | None = param(None, "the head when not said", refers="version")
    data: Any = param(None, "new data; the version's own figures stay as they are", refers="data")

    def run(self, desk: Desk) -> Any:
        return desk.session.evaluate(self.version, data=self.data)


class Agreement(Verb):
    """Where a version decides as its teacher does, where not, and which of the two is right: a map of both's decisions."""

    places: ClassVar = ("student",)
    sample: ClassVar = "%kd agreement @slim --teacher @base"
    pane: ClassVar = "Compare"

    student: str | None = param(None, "a version; the head when not said", refers="version")
    teacher: str = param("teacher", "a model or version to compare with; where there is none, the model the session began with", refers="model")
    data: str = param("eval", "data to ask both about", refers="data")

    def run(self, desk: Desk) -> Any:
        with desk.handed_over():
            return desk.session.agreement(self.student, self.teacher, self.data)


class Undo(Verb):
    """Back to what the head was made of."""

    places: ClassVar = ("times",)
    sample: ClassVar = "%kd undo"

    times: int = param(1, "how many steps", ge=1)

    def run(self, desk: Desk) -> Any:
        return _repeated(desk.session, desk.session.undo, self.times)


class Redo(Verb):
    """Forward to what `undo` left."""

    places: ClassVar = ("times",)
    sample: ClassVar = "%kd redo"

    times: int = param(1, "how many steps", ge=1)

    def run(self, desk: Desk) -> Any:
        return _repeated(desk.session, desk.session.redo, self.times)


def _repeated(session: Session, move: Callable[[], Any], times: int) -> Any:
    before = session.history
    try:
        return [move() for _ in range(times)][-1]
    except KdError:
        session.history = before
        raise


class Keep(Verb):
    """Give a version a label; another version that had it goes without."""

    places: ClassVar = ("version",)
    sample: ClassVar = "%kd keep @2 --as slim"

    version: str | None = param(None, "the head when not said", refers="version")
    as_: str = param(..., "the label")

    def run(self, desk: Desk) -> Any:
        return desk.session.keep(self.version, self.as_)


class Drop(Verb):
    """Free a version's memory; its line stays while others were made of it."""

    places: ClassVar = ("version",)
    sample: ClassVar = "%kd drop @2"

    version: str = param(..., "the version", refers="version")

    def run(self, desk: Desk) -> Any:
        return desk.session.drop(self.version)


class Pop(Verb):
    """Hand a version's model over to Python: a copy, yours to change."""

    places: ClassVar = ("version",)
    sample: ClassVar = "net = %kd pop @slim"

    version: str | None = param(None, "the head when not said", refers="version")

    def run(self, desk: Desk) -> Any:
        return desk.session.pop(self.version)


class Code(Verb):
    """The lines that made a version, put into the next cell."""

    places: ClassVar = ("version",)
    sample: ClassVar = "%kd code @slim"
    pane: ClassVar = "Export"

    version: str | None = param(None, "the head when not said", refers="version")

    def run(self, desk: Desk) -> Source:
        lines = _one_cell(desk.session, self.version) or desk.session.code(self.version)
        desk.put_below(lines)
        return Source(lines)


def _one_cell(session: Session, version: str | None) -> str:
    """The stages as one `%%kd` cell, where a group among them wants one and one seed made them all; else nothing."""
    line = session.history.lineage(session.version(version))
    made = [each for each in line if each.stage is not None and not each.inserted]
    if len({each.seed for each in made}) != 1 or not any("\n" in each.stage.line() for each in made if each.stage):
        return ""
    start = next(each for each in reversed(line[: line.index(made[0])]) if not each.inserted)
    return f"%%kd {made[-1].label} --on {start.name} --seed {made[0].seed}\n{session.recipe(version).lines()}".replace("%%kd  ", "%%kd ")


class Save(Verb):
    """Write a version to a folder: structure, weights, recipe, report; no pickle, and no plugin is needed to load it."""

    places: ClassVar = ("path", "version")
    sample: ClassVar = "%kd save small/ @slim"
    pane: ClassVar = "Export"

    path: str = param(..., "the folder", refers="path")
    version: str | None = param(None, "the head when not said", refers="version")

    def run(self, desk: Desk) -> Written:
        name = desk.session.version(self.version).name
        return Written(desk.session.save(self.path, self.version), f"{name} was saved")


class Load(Verb):
    """Bring a saved version back, into this session or as the first of a new one; bit by bit what it was."""

    places: ClassVar = ("path",)
    sample: ClassVar = "%kd load small/ --skeleton {Net()}"

    path: str = param(..., "a folder that `save` wrote", refers="path")
    skeleton: Any = param(None, "a fresh instance of the model's class, or the class, where kdkit can't find it by itself", refers="object")

    def run(self, desk: Desk) -> Any:
        if desk.has_session:
            return desk.session.load(self.path, skeleton=self.skeleton)
        from kdkit.session import Session

        session = Session.open(self.path, skeleton=self.skeleton)
        desk.begin(session, {})
        return session.head


class Export(Verb):
    """Write a version for use without kdkit: a file `.onnx`, or a folder for `from_pretrained`."""

    places: ClassVar = ("path", "version")
    sample: ClassVar = "%kd export small.onnx @slim"
    pane: ClassVar = "Export"

    path: str = param(..., "file or folder", refers="path")
    version: str | None = param(None, "the head when not said", refers="version")

    def run(self, desk: Desk) -> Written:
        name = desk.session.version(self.version).name
        return Written(desk.session.export(self.path, self.version), f"{name} was exported")


class Plugins(Verb):
    """The plugins: where they come from, whether they work, what they bring; take one out or back in, try it, watch the hooks."""

    places: ClassVar = ("action", "name")
    sample: ClassVar = "%kd plugins check kdkit-extra"

    action: Literal["list", "block", "unblock", "check", "trace"] = param(
        "list", "block takes a plugin out until the session ends, check tries all it brings, trace tells who answers which hook"
    )
    name: tuple[str, ...] = param((), "a plugin's name or its distribution's; for check also a technique, for trace on or off", refers="plugin")
    models: tuple[str, ...] = param((), "for check: models of the zoo, or your own as module:name; the whole zoo when not said")
    live: bool = param(False, "for trace: print each answer as it is given")

    def run(self, desk: Desk) -> Any:
        from kdkit.notebook import care

        if self.action == "list":
            return care.listing()
        name = ".".join(self.name)
        if not name:
            raise KdError(f"plugins {self.action}: which one?", f"%kd plugins {self.action} {'on' if self.action == 'trace' else 'NAME'}", "%kd plugins lists them")
        if self.action == "check":
            return care.check(name, self.models)
        if self.action == "trace":
            return care.trace(name, self.live)
        {"block": manager().block, "unblock": manager().allow}[self.action](name)
        return care.listing()


class NewPlugin(Verb):
    """Write a plugin that can be installed, tested and published: of a stage that a cell holds, or a small one to begin with."""

    places: ClassVar = ("name",)
    sample: ClassVar = "%kd new-plugin kdkit-tidy --from prune tidy"

    name: str = param(..., "of the distribution: lower-case words with dashes")
    from_: tuple[str, ...] = param((), "the stage to take along: family and technique, or the @version that it made", refers="technique")
    licence: Literal["MIT", "BSD-3-Clause", "Apache-2.0", "none"] = param("MIT", "what others may do with it")
    author: str = param("", "whom the licence names")
    folder: str = param(".", "where the new folder is made", refers="path")

    def run(self, desk: Desk) -> Any:
        from kdkit.notebook import care

        return care.new_plugin(self, desk)


class Doctor(Verb):
    """What is installed, what this machine can do, what is broken, and what to do about it."""

    sample: ClassVar = "%kd doctor"

    def run(self, desk: Desk) -> Any:
        from kdkit.notebook.doctor import examine

        return examine(desk.shell)


class Wizard(Verb):
    """Build, run, watch, compare and export a pipeline by hand and eye, with the lines that do the same always in sight."""

    places: ClassVar = ("family", "technique")
    sample: ClassVar = "%kd wizard prune channels"

    family: str | None = param(None, "whose techniques to begin with, such as prune", refers="family")
    technique: str | None = param(None, "whose form to begin with, such as channels")
    from_: str | None = param(None, 'a line whose form to begin with, such as "prune channels --ratio 0.5", or a version whose steps to begin with')

    def run(self, desk: Desk) -> Any:
        from kdkit.notebook.wizard.opening import open_wizard

        return open_wizard(desk, ".".join(filter(None, [self.family, self.technique])), self.from_ or "")
