"""The controller of a wizard: the session, the draft, and the lines that run in the worker's thread.

Tabs call the controller, and the controller calls the window through `View`. Whatever a button does, it does by running the
`%kd` lines that the wizard shows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from kdkit.errors import KdError, describe_exception
from kdkit.notebook.command import read
from kdkit.notebook.wizard.draft import Draft
from kdkit.notebook.wizard.worker import Worker, outcome_word
from kdkit.notebook.workspace import BackgroundWorkspace

if TYPE_CHECKING:
    from torch import nn

    from kdkit.notebook.workspace import Workspace
    from kdkit.session.session import Session
    from kdkit.stages.context import Progress

OnDone = Callable[[Any, BaseException | None], None]
"""Called with the result, or with the error."""


class View(Protocol):
    """The window, as the controller and the tabs see it."""

    def show_message(self, text: str, error: KdError | None = None) -> None:
        """Show the status and, if there is one, the error."""

    def show_lines(self) -> None:
        """Show the lines of the current tab."""

    def show_busy(self, busy: bool) -> None:
        """Show whether a line is running."""

    def refresh(self) -> None:
        """Update the current tab and its lines."""

    def open(self, title: str) -> None:
        """Bring a tab to the front."""

    def tab(self, title: str) -> Any:
        """A tab by its title, built if it was not yet."""

    def is_built(self, title: str) -> bool:
        """Whether a tab was shown or requested before."""


class Controller:
    """The state and the actions of a wizard.

    Args:
        workspace: the notebook's.
        view: the window.
        draft: the pipeline to start with.

    Attributes:
        draft: the pipeline being edited.
        worker: runs lines in a thread.
        turn: a lock for changes of the display, so that a button and a worker that just finished don't interleave.
        message: the last status and error, as text.
    """

    def __init__(self, workspace: Workspace, view: View, draft: Draft | None = None):
        self.workspace, self.view, self.draft = workspace, view, draft or Draft()
        self.worker, self.turn, self.message = Worker(), threading.RLock(), ""
        self._running_session: Session | None = None
        self._stop_requested = threading.Event()
        self._going = threading.Event()
        self._going.set()
        self._callbacks: list[Callable[[], None]] = []

    @property
    def session(self) -> Session | None:
        """The notebook's session, None if there is none yet."""
        return self.workspace.open_session

    @property
    def busy(self) -> str:
        """The name of the running action, empty if there is none."""
        return self.worker.busy

    def model(self) -> nn.Module | None:
        """The model that the draft starts from, None if there is none."""
        if self.session is None:
            return None
        try:
            return self.session.history.model_of(self.session.version(self.draft.start or None))
        except KdError:
            return None

    def redraft(self, draft: Draft, message: str = "") -> None:
        """Replace the draft and show a message."""
        self.draft = draft
        self.say(message)
        self.view.refresh()

    def say(self, text: str, error: BaseException | None = None) -> None:
        """Show a status and an error, if there is one. Screen readers announce both."""
        known = error if isinstance(error, KdError) or error is None else KdError(describe_exception(error))
        self.message = text if known is None else f"{text}\n{known}".strip()
        self.view.show_message(text, known)

    def do(self, what: str, lines: str, observe: Callable[[Progress], None] | None = None, on_done: OnDone = lambda result, error: None) -> bool:
        """Run a `%kd` line or a `%%kd` cell in the worker's thread.

        Args:
            what: the name of the action.
            lines: the line or cell, as displayed.
            observe: the progress callback.
            on_done: called with the result, or with the error.

        Returns:
            False if it can't be started; the reason is displayed.
        """
        session, stop_requested = self.session, threading.Event()
        on_progress = self._watched(stop_requested, session, observe)
        try:
            background = BackgroundWorkspace(self.workspace, on_progress)
            command = read(lines, background)
        except KdError as error:
            self.say(f"{what}: not started", error)
            return False
        return self._start(what, lambda: command.action.run(background), lambda: background.notes, on_done, stop_requested)

    def compute(self, what: str, work: Callable[[Callable[[Progress], None]], Any], on_done: OnDone = lambda result, error: None) -> bool:
        """Do some work that no line stands for in the worker's thread; the session must not change.

        Args:
            what: the name of the action.
            work: the work; its argument receives progress, and cancels.
            on_done: called with the result, or with the error.

        Returns:
            False if it can't be started; the reason is displayed.
        """
        stop_requested = threading.Event()
        on_progress = self._watched(stop_requested, self.session, None)
        return self._start(what, lambda: work(on_progress), list, on_done, stop_requested)

    def _start(self, what: str, work: Callable[[], Any], notes: Callable[[], Sequence[str]], on_done: OnDone, stop_requested: threading.Event) -> bool:
        """Start work in the worker's thread, and show its result when it ends."""
        started, session = time.monotonic(), self.session

        def done(result: Any, error: BaseException | None) -> None:
            with self.turn:
                message = f"{what}: {outcome_word(error)} after {time.monotonic() - started:.1f} s"
                self._finish("; ".join([message, *notes()]), lambda: on_done(result, error), error)

        try:
            with self.turn:
                self.worker.start(what, work, done)
                self._running_session, self._stop_requested = session, stop_requested
                self._going.set()
                self.say(f"{what} ...")
                self.view.show_busy(bool(self.busy))
        except KdError as error:
            self.say(f"{what}: not started", error)
            return False
        return True

    def _watched(self, stop_requested: threading.Event, session: Session | None, observe: Callable[[Progress], None] | None) -> Callable[[Progress], None]:
        """A progress callback that holds the run during a pause, and cancels it once that is requested."""

        def on_progress(progress: Progress) -> None:
            while not (self._going.wait(0.1) or stop_requested.is_set()):
                pass
            if stop_requested.is_set() and session is not None:
                # a cancellation that came before the run began is not kept by the session
                session.cancel()
            if observe is not None:
                observe(progress)

        return on_progress

    def run_now(self, lines: str) -> Any:
        """Run a fast line in this thread and return its result.

        Raises:
            KdError: it can't be read, or fails.
        """
        # its progress would be shown below the cell that runs, or nowhere
        background = BackgroundWorkspace(self.workspace, lambda progress: None)
        return read(lines, background).action.run(background)

    def _finish(self, message: str, show: Callable[[], None], error: BaseException | None) -> None:
        """Display a result. Errors of the display are shown too, as no caller in this thread could catch them."""
        try:
            self.view.show_busy(bool(self.busy))
            show()
            self.view.refresh()
            # the message comes last, when the result that it announces is visible
            self.say(message, error)
            for callback in self._callbacks:
                callback()
        except Exception as fault:
            self.say(f"{message}; the result can't be displayed", fault)

    def cancel(self) -> None:
        """Cancel the running action, also if the notebook has switched to another session since."""
        with self.turn:
            if self._running_session is None or not self.busy:
                self.say("nothing is running")
                return
            self.say(f"{self.busy}: cancelling ...")
            self._stop_requested.set()
            self._running_session.cancel()
            self._going.set()

    @property
    def paused(self) -> bool:
        """Whether the running action is held."""
        return bool(self.busy) and not self._going.is_set()

    def pause(self) -> None:
        """Hold the running action at its next message, or let it go on.

        Raises:
            KdError: nothing is running.
        """
        if not self.busy:
            raise KdError("nothing is running", "Run begins, Resume continues after a cancel or a failure")
        if self._going.is_set():
            self._going.clear()
            self.say(f"{self.busy}: paused; Continue goes on, Cancel stops")
        else:
            self._going.set()
            self.say(f"{self.busy} ...")

    def after_each(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each action."""
        self._callbacks.append(callback)

    def stop(self) -> None:
        """Cancel the running action, wait for its end, and drop the callbacks."""
        self.cancel()
        self.worker.wait(30)
        self._callbacks.clear()
