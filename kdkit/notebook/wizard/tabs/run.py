"""Run: run the pipeline, follow its progress, cancel it, and resume it."""

from __future__ import annotations

from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from kdkit.errors import KdError
from kdkit.forms.widgets import write
from kdkit.notebook.progress import Bar, Clock
from kdkit.notebook.wizard.draft import Draft, rewritten
from kdkit.notebook.wizard.run_steps import RUNNING, STOPPED, WAITING, Estimate, Log, RunSteps
from kdkit.notebook.wizard.tab import Tab
from kdkit.notebook.wizard.validation import validate_draft
from kdkit.notebook.wizard.worker import outcome_word
from kdkit.session.history import Version

if TYPE_CHECKING:
    from kdkit.session.session import Session
    from kdkit.stages.context import Progress


class RunTab(Tab):
    """Runs the draft."""

    title = "Run"

    def build(self) -> None:
        self.start = self.button("Run", "run the pipeline; each successful stage adds a version", self._run)
        self.pause = self.button("Pause", "hold the run where it is; the kernel stays free", self._pause)
        self.cancel = self.button("Cancel", "stop within a second; the running stage leaves no trace in the session", self.controller.cancel)
        self.resume = self.button("Resume", "continue after the last finished step", self._resume)
        self.follow = self.button("Continue from the result", "start the next pipeline from the new version", self._follow)
        self.whole = widgets.FloatProgress(min=0, max=1, layout={"width": "16em"})
        self.overall = widgets.Label()
        self.bar, self.clock, self.estimate = Bar(place=None), Clock(), Estimate()
        self.bar.box.add_class("kdkit-curves")
        self.steps, self.log = RunSteps(), Log()
        self.summary, self.report = widgets.HTML(), widgets.HTML()
        self.rest: Draft | None = None
        self.made: Version | None = None
        self.ran: Session | None = None
        meanwhile = widgets.HTML("<small>The kernel stays free during a run. Cells that draw random numbers meanwhile change its result.</small>")
        buttons = widgets.HBox([self.start, self.pause, self.cancel, self.resume, self.follow], layout={"flex_flow": "row wrap"})
        overall = widgets.HBox([self.whole, self.overall], layout={"flex_flow": "row wrap"})
        self.bars = widgets.VBox([overall, self.steps.box, self.bar.box], layout={"display": "none"})
        self.box.children = [self.summary, buttons, self.bars, self.report, self.log.box, meanwhile]
        self._shape()

    @property
    def lines(self) -> str:
        return self.controller.draft.cell

    def refresh(self) -> None:
        verdicts = validate_draft(self.controller.draft, self.controller.workspace)
        wrong = [f"<li>step {number}: {verdict.html}</li>" for number, verdict in enumerate(verdicts, 1) if not verdict.fits]
        steps = len(self.controller.draft.steps)
        text = f"{steps} step{'s' * (steps != 1)} to run" if steps else "There are no steps yet: add one in <b>Build</b>."
        write(self.summary, f"<p>{text}</p>" + (f"<ul>{''.join(wrong)}</ul>" if wrong else ""))
        self._shape()

    def _shape(self) -> None:
        busy, session = bool(self.controller.busy), self.controller.session
        self.start.button_style, self.cancel.button_style = ("", "danger") if busy else ("primary", "")
        self.start.disabled = session is None or not self.controller.draft.steps
        if session is not self.ran:
            # the rest of a run belongs to its session
            self.rest = self.made = None
        self.pause.description = "Continue" if self.controller.paused else "Pause"
        self.resume.disabled = busy or self.rest is None
        self.follow.disabled = busy or self.made is None

    def busy(self, busy: bool) -> None:
        self._shape()

    # running

    def _run(self) -> None:
        """Run the draft; its start version is fixed to the current head, so that a second run starts from the same version."""
        draft, session = self.controller.draft, self.controller.session
        if session is not None and not draft.start:
            self.controller.redraft(draft := replace(draft, start=session.head.name))
        self._begin(draft)

    def _begin(self, draft: Draft) -> None:
        session = self.controller.session
        if session is None:
            raise KdError("there is no session yet", "choose a model in the Start tab")
        before = session.history.next

        def end(made: Any, error: BaseException | None) -> None:
            self._end(draft, _made_since(session, before), error)

        self.bar.begin()
        self.log.begin()
        self.steps.begin(draft.steps)
        self.estimate = Estimate()
        self.bars.layout.display = None
        self.whole.value, self.overall.value, self.report.value = 0, f"0 of {len(draft.steps)} stages", ""
        self.clock = Clock()
        if self.controller.do("running the pipeline", draft.cell, lambda progress: self._observe(progress, session, before), end):
            self.rest, self.made, self.ran = None, None, session
            self.steps.show([], 0, RUNNING)
            self.cancel.focus()

    def _pause(self) -> None:
        self.controller.pause()
        (self.estimate.pause if self.controller.paused else self.estimate.go_on)()
        self._shape()

    def _observe(self, progress: Progress, session: Session, before: int) -> None:
        """Show progress; called from the worker's thread."""
        self.bar.add(progress)
        text = self.clock.describe(progress)
        if text:
            self.bar.show(progress, text)
            share = min(progress.done / progress.total, 1.0) if progress.total else 0.0
            self.whole.value = (progress.part - 1 + share) / progress.parts
            self.overall.value = self.estimate.describe(progress.part, progress.parts, share)
            self.steps.show(_made_since(session, before), progress.part - 1, RUNNING)
            self.log.add(" · ".join(word for word in (progress.stage, progress.text) if word))

    def _end(self, draft: Draft, done: list[Version], error: BaseException | None) -> None:
        self.bar.end(outcome_word(error), failed=error is not None)
        self.log.add(outcome_word(error) if error is None else f"{outcome_word(error)}: {error}")
        self.steps.show(done, len(done), STOPPED if error is not None else WAITING)
        self.made = done[-1] if done else None
        self.overall.value = f"{len(done)} of {len(draft.steps)} stages done"
        if error is None:
            self.whole.value = 1
        elif len(done) < len(draft.steps):
            self.rest = _remaining(draft, done, getattr(error, "resumable", False))
            head = done[-1].name if done else draft.start
            self.report.value = f"<p>The head is {escape(head)}. Resume runs <code>{escape(self.rest.cell)}</code></p>"
        if error is None and self.made is not None:
            self.report.value = self.made._repr_html_()

    def _resume(self) -> None:
        if self.rest is not None:
            self._begin(self.rest)

    def _follow(self) -> None:
        if self.made is not None:
            made, self.made = self.made, None
            self.controller.redraft(Draft(start=made.name))
            self.controller.view.open("Build")
            self.controller.view.tab("Build").palette.focus()


def _made_since(session: Session, number: int) -> list[Version]:
    """The versions from a number on, without inserted ones."""
    return [version for version in session.versions if version.number >= number and not version.inserted]


def _remaining(draft: Draft, done: list[Version], resumable: bool) -> Draft:
    """The remaining steps; the first one resumes from its checkpoint if there is one."""
    steps = draft.steps[len(done) :]
    if resumable:
        first, *others = steps[0].splitlines()
        steps = ("\n".join([rewritten(first, resume=True), *others]), *steps[1:])
    return replace(draft, steps=steps, start=done[-1].name if done else draft.start)
