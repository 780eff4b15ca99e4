"""The window: a session by hand and eye, in tabs, with the `%kd` lines that would do the same always in sight.

Whatever a button does, it does by carrying out the very line that is shown, in a thread of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from kdkit.errors import Cancelled, KdError
from kdkit.notebook.desk import Aside
from kdkit.notebook.grammar import read
from kdkit.notebook.wizard.draft import Draft
from kdkit.notebook.wizard.pane import Pane, close, write
from kdkit.notebook.wizard.snippets import KEYS, STYLE, code, problem, status
from kdkit.notebook.wizard.worker import Worker, ended

if TYPE_CHECKING:
    from torch import nn

    from kdkit.context import Progress
    from kdkit.notebook.desk import Desk
    from kdkit.session import Session


class Wizard:
    """The widget of `%kd wizard`, and what stands behind it.

    Args:
        desk: of the notebook.
        draft: the pipeline to begin with.
        first: title of the tab that is open.

    Attributes:
        box: the widget.
        draft: the pipeline that is being put together.
        worker: does what takes time.
        turn: held by whoever changes what is shown, a button or the worker that is done, so that neither meets the other halfway.
        told: what was said last, as text.
    """

    def __init__(self, desk: Desk, draft: Draft | None = None, first: str = ""):
        from kdkit.notebook.wizard.panes import PANES

        self.desk, self.draft, self.worker = desk, draft or Draft(), Worker()
        self.told, self.turn = "", threading.RLock()
        self._at_work: Session | None = None
        self._stopping = threading.Event()
        self.panes: list[Pane] = [made(self) for made in PANES]
        self._built = [False] * len(self.panes)
        self._listening: list[Callable[[], None]] = []
        self._code, self._status, self._problem = widgets.HTML(), widgets.HTML(status("")), widgets.HTML()
        self.tabs = widgets.Tab([pane.box for pane in self.panes], titles=[pane.title for pane in self.panes])
        help_line = widgets.HTML(f'<small style="opacity:.85">{KEYS}</small>')
        self.box = widgets.VBox([widgets.HTML(STYLE), self.tabs, self._problem, self._status, widgets.HTML("<b>The same in a cell</b>"), self._code, help_line])
        self.box.add_class("kdkit-wizard")
        self.tabs.selected_index = self._index(first) if first else 0
        self.tabs.observe(self._opened, "selected_index")
        self._opened()

    # what it works on

    @property
    def session(self) -> Session | None:
        """The notebook's session, once there is one."""
        return self.desk.held

    def model(self) -> nn.Module | None:
        """The model that the draft begins with."""
        if self.session is None:
            return None
        try:
            return self.session.history.model_of(self.session.version(self.draft.start or None))
        except KdError:
            return None

    def pane(self, title: str) -> Any:
        """A pane by its title, built if it was not yet."""
        index = self._index(title)
        self._build(index)
        return self.panes[index]

    def is_built(self, title: str) -> bool:
        """Whether a pane was shown or asked for."""
        return self._built[self._index(title)]

    def open(self, title: str) -> None:
        """Bring a tab to the front."""
        self.tabs.selected_index = self._index(title)

    @property
    def busy(self) -> str:
        """What is being done; empty while nothing is."""
        return self.worker.busy

    @property
    def current(self) -> Pane:
        """The pane in front."""
        return self.panes[self.tabs.selected_index or 0]

    def _index(self, title: str) -> int:
        return next(index for index, pane in enumerate(self.panes) if pane.title == title)

    def _build(self, index: int) -> None:
        if not self._built[index]:
            self._built[index] = True
            self.panes[index].build()
            self.panes[index].busy(bool(self.busy))

    def _opened(self, change: Any = None) -> None:
        self._build(self.tabs.selected_index or 0)
        if not self.busy:
            self.say("")
        self.refresh()

    # what it shows

    def redraft(self, draft: Draft, said: str = "") -> None:
        """Take another draft in place of this one, and say what was done."""
        self.draft = draft
        self.say(said)
        self.show_lines()
        self.current.refresh()

    def refresh(self) -> None:
        """Show the session and the draft as they stand, in the tab in front; the others do when they are opened."""
        self.current.refresh()
        self.show_lines()

    def show_lines(self) -> None:
        """Show the lines for the tab in front."""
        write(self._code, code(self.current.lines))

    def say(self, text: str, error: BaseException | None = None) -> None:
        """Tell how it stands, in words that are read out, and what is wrong, if something is."""
        write(self._status, status(text))
        known = error if isinstance(error, KdError) or error is None else KdError(f"{type(error).__name__}: {error}")
        self.told = text if known is None else f"{text}\n{known}".strip()
        # a region that comes into being is read out where it is an alert, and only there
        write(self._problem, "" if known is None else f'<div role="alert">{problem(known, "Stopped" if isinstance(error, Cancelled) else "Error")}</div>')

    # what it does

    def do(
        self,
        what: str,
        lines: str,
        observe: Callable[[Progress], None] | None = None,
        then: Callable[[Any, BaseException | None], None] = lambda made, error: None,
    ) -> bool:
        """Carry out a `%kd` line or a `%%kd` cell in the worker's thread; False where it can't be begun, which is said.

        Args:
            what: it is called.
            lines: as they are shown.
            observe: hears how far it is.
            then: is given what came of it, or the error.
        """
        began, session, stopping = time.monotonic(), self.session, threading.Event()

        def heard(progress: Progress) -> None:
            if stopping.is_set() and session is not None:
                # a run forgets what it was asked before it began
                session.cancel()
            if observe is not None:
                observe(progress)

        def done(made: Any, error: BaseException | None) -> None:
            with self.turn:
                self._done(f"{what}: {ended(error)} after {time.monotonic() - began:.1f} s", lambda: then(made, error), error)

        try:
            aside = Aside(self.desk, heard)
            command = read(lines, aside)
            with self.turn:
                self.worker.start(what, lambda: command.verb.run(aside), done)
                self._at_work, self._stopping = session, stopping
                self.say(f"{what} ...")
                self._occupied()
        except KdError as error:
            self.say(f"{what}: not begun", error)
            return False
        return True

    def _done(self, said: str, then: Callable[[], None], error: BaseException | None) -> None:
        """Show what came of it; there is nobody above who would hear of a fault in that."""
        try:
            self._occupied()
            then()
            self.refresh()
            # last of what is shown, so that what it tells of is there to be seen
            self.say(said, error)
            for heard in self._listening:
                heard()
        except Exception as fault:
            self.say(f"{said}, and it can't be shown", fault)

    def cancel(self) -> None:
        """Ask what is being done to stop, also where the notebook works on another session by now; the session stays as it was before it."""
        with self.turn:
            if self._at_work is None or not self.busy:
                self.say("nothing is running")
                return
            self.say(f"{self.busy}: cancelling ...")
            self._stopping.set()
            self._at_work.cancel()

    def _occupied(self) -> None:
        for pane, built in zip(self.panes, self._built, strict=True):
            if built:
                pane.busy(bool(self.busy))

    def after_each(self, heard: Callable[[], None]) -> None:
        """Call `heard` after each thing that was done."""
        self._listening.append(heard)

    def close(self) -> None:
        """Stop what runs, and take away every widget; nothing is left behind."""
        self.cancel()
        self.worker.wait(30)
        self._listening.clear()
        for pane, built in zip(self.panes, self._built, strict=True):
            for widget in pane.unseen() if built else ():
                close(widget)
        close(self.box)

    # how it is shown

    def __repr__(self) -> str:
        where = f"on {self.draft.start or self.session.head.name}" if self.session else "without a model yet"
        steps = len(self.draft.steps)
        return f"kdkit wizard: {steps} step{'s' * (steps != 1)} {where}"
