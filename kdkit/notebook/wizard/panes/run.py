"""Run: the pipeline at work, stage by stage, with what it tells, a way to stop it, and a way to go on."""

from __future__ import annotations

from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from kdkit.errors import KdError
from kdkit.notebook.progress import Bar, Clock
from kdkit.notebook.wizard.draft import Draft, rewritten
from kdkit.notebook.wizard.judgement import judge
from kdkit.notebook.wizard.pane import Pane, write
from kdkit.notebook.wizard.worker import ended
from kdkit.versions import Version

if TYPE_CHECKING:
    from kdkit.context import Progress
    from kdkit.session import Session


class RunPane(Pane):
    """The draft as it runs."""

    title = "Run"

    def build(self) -> None:
        self.start = self.button("Run", "run the pipeline; each stage that succeeds is a version", self._run)
        self.cancel = self.button("Cancel", "stop within a second; the session stays as it was before the stage that runs", self.wizard.cancel)
        self.resume = self.button("Resume", "go on behind the last step that was done", self._resume)
        self.follow = self.button("Go on from the result", "begin the next pipeline with the version that was made", self._follow)
        self.whole = widgets.FloatProgress(min=0, max=1, layout={"width": "16em"})
        self.overall = widgets.Label()
        self.bar, self.clock = Bar(place=None), Clock()
        self.judged, self.report = widgets.HTML(), widgets.HTML()
        self.rest: Draft | None = None
        self.made: Version | None = None
        self.ran: Session | None = None
        meanwhile = widgets.HTML("<small>The kernel stays free meanwhile. Cells that draw random numbers while it runs change what comes of it.</small>")
        buttons = widgets.HBox([self.start, self.cancel, self.resume, self.follow], layout={"flex_flow": "row wrap"})
        self.bars = widgets.VBox([widgets.HBox([self.whole, self.overall]), self.bar.box], layout={"display": "none"})
        self.box.children = [self.judged, buttons, meanwhile, self.bars, self.report]
        self._shape()

    @property
    def lines(self) -> str:
        return self.wizard.draft.cell

    def refresh(self) -> None:
        verdicts = judge(self.wizard.draft, self.wizard.desk)
        wrong = [f"<li>step {number}: {verdict.html}</li>" for number, verdict in enumerate(verdicts, 1) if not verdict.fits]
        steps = len(self.wizard.draft.steps)
        told = f"{steps} step{'s' * (steps != 1)} to run" if steps else "There is no step yet: add one in <b>Pipeline</b>."
        write(self.judged, f"<p>{told}</p>" + (f"<ul>{''.join(wrong)}</ul>" if wrong else ""))
        self._shape()

    def _shape(self) -> None:
        busy, session = bool(self.wizard.busy), self.wizard.session
        self.start.button_style, self.cancel.button_style = ("", "danger") if busy else ("primary", "")
        self.start.disabled = session is None or not self.wizard.draft.steps
        if session is not self.ran:
            # what is left of a run belongs to the session it ran in
            self.rest = self.made = None
        self.resume.disabled = busy or self.rest is None
        self.follow.disabled = busy or self.made is None

    def busy(self, busy: bool) -> None:
        self._shape()

    # at work

    def _run(self) -> None:
        """Run the draft, from the version that is the head now, also when it is run again."""
        draft, session = self.wizard.draft, self.wizard.session
        if session is not None and not draft.start:
            self.wizard.redraft(draft := replace(draft, start=session.head.name))
        self._begin(draft)

    def _begin(self, draft: Draft) -> None:
        session = self.wizard.session
        if session is None:
            raise KdError("there is no session yet", "choose a model in the tab Model")
        before = session.history.next

        def end(made: Any, error: BaseException | None) -> None:
            self._end(draft, [version for version in session.versions if version.number >= before and not version.inserted], error)

        self.bar.begin()
        self.bars.layout.display = None
        self.whole.value, self.overall.value, self.report.value = 0, f"0 of {len(draft.steps)} stages", ""
        self.clock = Clock()
        if self.wizard.do("running the pipeline", draft.cell, self._observe, end):
            self.rest, self.made, self.ran = None, None, session
            self.cancel.focus()

    def _observe(self, progress: Progress) -> None:
        """Show how far it is; called from the thread in which it runs."""
        self.bar.hear(progress)
        text = self.clock.tell(progress)
        if text:
            self.bar.show(progress, text)
            share = progress.done / progress.total if progress.total else 0.0
            self.whole.value = (progress.part - 1 + min(share, 1.0)) / progress.parts
            self.overall.value = f"stage {progress.part} of {progress.parts}"

    def _end(self, draft: Draft, done: list[Version], error: BaseException | None) -> None:
        self.bar.end(ended(error), failed=error is not None)
        self.made = done[-1] if done else None
        self.overall.value = f"{len(done)} of {len(draft.steps)} stages done"
        if error is None:
            self.whole.value = 1
        elif len(done) < len(draft.steps):
            self.rest = _remaining(draft, done, getattr(error, "resumable", False))
            stands = done[-1].name if done else draft.start
            self.report.value = f"<p>The session stands on {escape(stands)}. Resume runs <code>{escape(self.rest.cell)}</code></p>"
        if error is None and self.made is not None:
            self.report.value = self.made._repr_html_()

    def _resume(self) -> None:
        if self.rest is not None:
            self._begin(self.rest)

    def _follow(self) -> None:
        if self.made is not None:
            made, self.made = self.made, None
            self.wizard.redraft(Draft(start=made.name))
            self.wizard.open("Pipeline")
            self.wizard.pane("Pipeline").family.focus()


def _remaining(draft: Draft, done: list[Version], resumable: bool) -> Draft:
    """What is left to do; the first stage goes on from its checkpoint, where it left one."""
    steps = draft.steps[len(done) :]
    if resumable:
        first, *others = steps[0].splitlines()
        steps = ("\n".join([rewritten(first, resume=True), *others]), *steps[1:])
    return replace(draft, steps=steps, start=done[-1].name if done else draft.start)
