"""The workspace of a notebook: its shell, its variables and its session, which every `%kd` line works with."""

from __future__ import annotations

import builtins
import contextlib
from collections import ChainMap
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from kdkit.errors import KdError, describe_exception, did_you_mean
from kdkit.notebook.open_sessions import OpenSession, OpenSessions
from kdkit.notebook.progress import watch

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from kdkit.session.session import Session
    from kdkit.stages.context import Progress


class Workspace:
    """The environment of one notebook's lines.

    Attributes:
        shell: the running IPython.
        sessions: the open sessions, shared with the workspaces of threads.
        variables: the names that expressions can use: the caller's locals over the notebook's variables.
        new_objects: objects that the current line names and the session doesn't hold yet.
        notes: what the current line has to say beside its result.
        quiet: show no progress.
        last_error: the last error of a line, for `%kd --debug`.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell = shell
        self.sessions = OpenSessions()
        self.variables: ChainMap[str, Any] = ChainMap(shell.user_ns)
        self.new_objects: dict[str, Any] = {}
        self.notes: list[str] = []
        self.quiet = False
        self._sources: list[tuple[Any, str]] = []
        self.last_error: KdError | None = None

    @property
    def opened(self) -> OpenSession | None:
        """The session that lines work on, with what the notebook knows about it; None if there is none yet."""
        return self.sessions.current

    @property
    def open_session(self) -> Session | None:
        """The session, None if there is none yet."""
        return None if self.opened is None else self.opened.session

    @property
    def session(self) -> Session:
        """The session.

        Raises:
            KdError: there is none yet.
        """
        if self.open_session is None:
            raise KdError("there is no model yet", "%kd use your_model --train {loader} --eval {loader}", "%kd load FOLDER opens a saved version")
        return self.open_session

    @property
    def has_session(self) -> bool:
        return self.open_session is not None

    @property
    def objects(self) -> dict[str, Any]:
        """The objects that lines gave the session, by name."""
        return {} if self.opened is None else self.opened.objects

    def begin(self, session: Session, given: dict[str, Any], name: str = "", model: Any = None) -> None:
        """Switch to a new session.

        Args:
            session: the session.
            given: the objects it was created with, by name.
            name, model: the variable that it was opened with, and the object.
        """
        former = self.sessions.open(session, name, model, given)
        if former is not None:
            self.tell(f"the former session of {name} is kept as {former.name}: %kd switch {former.name}")

    def switch(self, opened: OpenSession) -> None:
        """Switch to an open session."""
        self.sessions.current = opened

    def remember(self, given: dict[str, Any]) -> None:
        """Record the names under which the session was given objects."""
        self.objects.update(given)

    def tell(self, note: str) -> None:
        """Add a note to the result of the current line."""
        self.notes.append(note)

    def name_source(self, value: Any, source: str) -> None:
        """Record the variable or expression by which the current line names an object."""
        self._sources.append((value, source))

    def source_of(self, value: Any) -> str:
        """The variable or expression by which the current line names an object; empty if it names it by none."""
        return next((source for named, source in self._sources if named is value), "")

    def progress(self) -> contextlib.AbstractContextManager[Callable[[Progress], None] | None]:
        """Show progress during the block; yields the callback for progress messages."""
        return watch(self.shell, self.quiet)

    def put_below(self, lines: str) -> None:
        """Insert a new cell with these lines below the current one."""
        self.shell.set_next_input(lines, replace=False)

    @contextlib.contextmanager
    def line(self, local: dict[str, Any]) -> Iterator[None]:
        """During one line its expressions also see the caller's `local` variables. Afterwards nothing of the line is kept alive."""
        self.variables = ChainMap(local, self.shell.user_ns)
        try:
            yield
        finally:
            self.variables, self.new_objects, self.notes, self._sources = ChainMap(self.shell.user_ns), {}, [], []

    def names(self) -> list[str]:
        """The variables that a line can name."""
        return [name for name in self.variables if not name.startswith("_") and name not in vars(builtins)]

    def value(self, source: str) -> Any:
        """The value of a Python expression.

        Raises:
            KdError: the expression raises, or uses an unknown name.
        """
        try:
            return eval(source, dict(self.variables))
        except NameError as error:
            name = getattr(error, "name", None) or source
            raise KdError(f"{{{source}}}: there is no variable {name!r}", did_you_mean(name, self.names()), f"create it first: {name} = ...") from error
        except Exception as error:
            raise KdError(f"{{{source}}} raised {describe_exception(error)}", "check the expression between the braces") from error

    @contextlib.contextmanager
    def temporary_objects(self) -> Iterator[None]:
        """Add the current line's new objects to the session; they are removed again if the session's history stays the same."""
        session, history, new, objects = self.session, self.session.history, dict(self.new_objects), self.objects
        if new:
            session.set(**new)
        try:
            yield
        finally:
            if new and session.history is history:
                session.objects = session.objects.updated(dict.fromkeys(new), session.settings["batch_size"])
            else:
                objects.update(new)


class BackgroundWorkspace(Workspace):
    """A workspace for lines that run in a thread, on the session that a notebook's workspace has at the start, also after the notebook switched.

    Args:
        workspace: the notebook's.
        observe: the progress callback, in place of the notebook's display.
    """

    def __init__(self, workspace: Workspace, observe: Callable[[Progress], None] | None = None) -> None:
        super().__init__(workspace.shell)
        self.sessions, self.observe = workspace.sessions, observe
        self._opened = workspace.opened

    @property
    def opened(self) -> OpenSession | None:
        return self._opened

    def begin(self, session: Session, given: dict[str, Any], name: str = "", model: Any = None) -> None:
        super().begin(session, given, name, model)
        self._opened = self.sessions.current

    def switch(self, opened: OpenSession) -> None:
        super().switch(opened)
        self._opened = opened

    def progress(self) -> contextlib.AbstractContextManager[Callable[[Progress], None] | None]:
        return contextlib.nullcontext(self.observe)

    def put_below(self, lines: str) -> None:
        """Do nothing: no cell of this thread is running, so the lines would appear below an unrelated one."""


_workspaces: dict[Any, Workspace] = {}


def workspace_of(shell: InteractiveShell) -> Workspace:
    """The workspace of a shell, created at first use. It survives a reload of the extension."""
    if shell not in _workspaces:
        _workspaces[shell] = Workspace(shell)
    return _workspaces[shell]


def session(shell: InteractiveShell) -> Session | None:
    """The session that `%kd` uses in this shell, None if there is none yet."""
    return _workspaces[shell].open_session if shell in _workspaces else None
