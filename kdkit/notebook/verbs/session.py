"""Verbs that set up sessions and run stages: use, sessions, switch, set, run, rerun, undo, redo, eval."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from kdkit.display.page import Page, Source
from kdkit.display.table import Table
from kdkit.errors import KdError
from kdkit.notebook.command import Apply
from kdkit.notebook.variables import sessions_in
from kdkit.notebook.verb import Verb
from kdkit.parameters.settings import param
from kdkit.pipelines.pipeline import Pipeline
from kdkit.session.settings import SessionSettings, without_defaults
from kdkit.stages.data_sources import DATA
from kdkit.stages.line_options import Running

if TYPE_CHECKING:
    from kdkit.notebook.open_sessions import OpenSession
    from kdkit.notebook.workspace import Workspace
    from kdkit.session.session import Session


class Status(Verb):
    """Show the versions, their figures, and the techniques that fit next."""

    example_line: ClassVar = "%kd"

    def run(self, workspace: Workspace) -> Any:
        if workspace.has_session:
            return workspace.session.status()
        return Page("There is no model yet.", Source("%kd use your_model --train {loader} --eval {loader}\n%kd help"))


class Use(SessionSettings, Verb):
    """Start a session with a model that is in memory, its data and its settings; the model itself is never changed.

    Write the name of an object of the notebook, or any Python expression in braces: `{loaders['train']}`. The session belongs to
    that name: `use` with the same object continues it, with the data and settings that are given changed as by `set`.
    """

    positional: ClassVar = ("model",)
    example_line: ClassVar = "%kd use net --train {train} --eval {val} --teacher {big}"

    model: Any = param(..., "an nn.Module, an object that a plugin converts to one, or a Session made in Python", names="model")
    as_: str = param("base", "label of the first version")
    fresh: bool = param(False, "start a new session also with an object that has one")

    def run(self, workspace: Workspace) -> Session:
        from kdkit.session.session import Session

        given, name = self.given(), workspace.source_of(self.model)
        if isinstance(self.model, Session) and self.fresh:
            raise KdError(f"{name or 'this'} is a session, which can't start again", "%kd use your_model --fresh")
        opened = None if self.fresh else workspace.sessions.of(self.model)
        if opened is not None:
            return self._continue(workspace, opened, given)
        session = self.model.set(**given) if isinstance(self.model, Session) else Session(self.model, label=self.as_, **given)
        workspace.begin(session, given, name, self.model)
        return session

    def _continue(self, workspace: Workspace, opened: OpenSession, given: dict[str, Any]) -> Session:
        session, name = opened.session, opened.name
        session.set(**given)
        first = session.versions[0]
        if "as_" in self.model_fields_set and first.label != self.as_:
            session.keep(first, self.as_)
        workspace.switch(opened)
        workspace.remember(given)
        changed = session is not self.model and not session.began_with(self.model)
        what = f", without the weights that {name} has by now" if changed else ""
        workspace.tell(f"the session of {name} continues at {session.head.name}{what}; %kd use {_written(name)} --fresh starts a new one")
        return session


class Sessions(Verb):
    """List the sessions of this notebook: those that `use` and `load` opened, and those that variables hold."""

    example_line: ClassVar = "%kd sessions"

    close: tuple[str, ...] = param((), "forget these sessions, and free their memory", names="session")

    def run(self, workspace: Workspace) -> Any:
        for name in self.close:
            workspace.sessions.close(name)
        rows = [[each.name + (" *" if each is workspace.opened else ""), *_summary(each.session)] for each in workspace.sessions]
        rows += [[name, *_summary(session)] for name, session in sessions_in(workspace.shell) if workspace.sessions.of(session) is None]
        if not rows:
            return Page("There is no session yet.", Source("%kd use your_model --train {loader} --eval {loader}"))
        return Table(["session", "model", "versions", "head", "data"], rows, "* is the current one; %kd switch NAME goes to another")


def _summary(session: Session) -> list[str]:
    held = " ".join(each.name for each in session.versions if each.model is not None)
    return [type(session.original).__name__, held, session.head.name, ", ".join(name for name in DATA if name in session.objects) or "none"]


def _written(name: str) -> str:
    """A session's name as a line names its object."""
    return name if name.isidentifier() else f"{{{name}}}"


class Switch(Verb):
    """Go to another session of this notebook, as it was left."""

    positional: ClassVar = ("session",)
    example_line: ClassVar = "%kd switch net"

    session: Any = param(..., "its name in `sessions`, a variable that holds a Session, or the model that it was opened with", names="session")

    def run(self, workspace: Workspace) -> Session:
        from kdkit.session.session import Session

        chosen, name = self.session, str(self.session)
        if isinstance(chosen, str) and chosen not in workspace.sessions.by_name:
            chosen = workspace.variables.get(chosen, chosen)
        opened = workspace.sessions.find(chosen) if isinstance(chosen, str) else workspace.sessions.of(chosen)
        if opened is not None:
            workspace.switch(opened)
        elif isinstance(chosen, Session):
            workspace.begin(chosen, {}, name if isinstance(self.session, str) else "")
        else:
            raise KdError(f"there is no session of {name if isinstance(self.session, str) else type(chosen).__name__}", "%kd use opens one", "%kd sessions lists them")
        return workspace.session


class Set(without_defaults(), Verb):  # type: ignore[misc]
    """Change data, the teacher, settings, or any object by name; what is not given stays as it is, `{None}` removes an object."""

    example_line: ClassVar = "%kd set --backend int8 --calibration {batches}"

    def run(self, workspace: Workspace) -> Session:
        given = self.given()
        workspace.session.set(**given)
        workspace.remember(given)
        return workspace.session


class Run(Running, Verb):
    """Run a recipe: the stages of a YAML file, in order."""

    positional: ClassVar = ("recipe",)
    example_line: ClassVar = "%kd run small.yaml --on @base --as small"

    recipe: str = param(..., "YAML file that session.recipe().save(path) wrote", names="path")
    anywhere: bool = param(False, "let the recipe write to places outside of the working directory")

    def run(self, workspace: Workspace) -> Any:
        pipeline = Pipeline.load(self.recipe, self.anywhere)
        running = Running(**{name: getattr(self, name) for name in Running.model_fields} | {"as_": self.as_ or pipeline.name or None})
        return Apply(pipeline, running).run(workspace)


class Eval(Verb):
    """Measure a version again, or measure its quality on new data."""

    positional: ClassVar = ("version",)
    example_line: ClassVar = "%kd eval @slim --data {new}"

    version: str | None = param(None, "a version; default: the head", names="version")
    data: Any = param(None, "new data; the figures in the version's report don't change", names="data")
    all: bool = param(False, "measure the quality on all of the eval data, where only a sample was evaluated")

    def run(self, workspace: Workspace) -> Any:
        return workspace.session.evaluate(self.version, data=self.data, all=self.all)


class Undo(Verb):
    """Move the head back to the version that it was made from."""

    positional: ClassVar = ("times",)
    example_line: ClassVar = "%kd undo"

    times: int = param(1, "number of steps", ge=1)

    def run(self, workspace: Workspace) -> Any:
        return _repeated(workspace.session, workspace.session.undo, self.times)


class Redo(Verb):
    """Move the head forward again after `undo`."""

    positional: ClassVar = ("times",)
    example_line: ClassVar = "%kd redo"

    times: int = param(1, "number of steps", ge=1)

    def run(self, workspace: Workspace) -> Any:
        return _repeated(workspace.session, workspace.session.redo, self.times)


class Rerun(Verb):
    """Run the lines that made a version again, after a change of what they build on: other data, another seed, or a version replaced.

    If a version on the way was replaced, the lines after it run on the one in its place; else all of them run. The new versions take the
    labels of the old ones.
    """

    positional: ClassVar = ("version",)
    example_line: ClassVar = "%kd rerun @small --seed 1"

    version: str | None = param(None, "default: the head", names="version")
    seed: int | None = param(None, "random seed of every line; default: that with which it ran before", ge=0)

    def run(self, workspace: Workspace) -> Any:
        with workspace.progress() as observe:
            return workspace.session.rerun(self.version, seed=self.seed, observe=observe)


def _repeated(session: Session, move: Callable[[], Any], times: int) -> Any:
    before = session.history
    try:
        return [move() for _ in range(times)][-1]
    except KdError:
        session.history = before
        raise
