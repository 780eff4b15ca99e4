"""Opening: what `%kd wizard` shows, where there are widgets and where there are none, and what is left of it without a kernel."""

from __future__ import annotations

import os
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any

from kdkit.notebook.page import Page, Source
from kdkit.notebook.wizard.hand import Hand

if TYPE_CHECKING:
    from kdkit.contract import Stage
    from kdkit.notebook.desk import Desk
    from kdkit.notebook.wizard.draft import Draft
    from kdkit.notebook.wizard.window import Wizard
    from kdkit.session import Session
    from kdkit.versions import Version

LIVES = "What was done is kept here. The form of %kd wizard lives only while its kernel does: run the cell again to have it back."
"""Said where the form is shown no more; JupyterLab itself has only "Error displaying widget: model not found"."""

_open: dict[Any, View] = {}
"""The wizard of each shell; opening another closes it."""


class View(Hand):
    """A wizard as a notebook shows it: the widget, and below it a report that stays when the kernel is gone. Code can work it too.

    Args:
        wizard: that is shown.
    """

    def __init__(self, wizard: Wizard):
        super().__init__(wizard)
        self._report: Any = None
        wizard.after_each(self._update)

    def _bundle(self) -> dict[str, Any]:
        return {**self.wizard.box._repr_mimebundle_(), "text/plain": repr(self), "text/html": f"<p>{escape(LIVES)}</p>"}

    def _ipython_display_(self) -> None:
        """The widget, and below it the report, which is kept up to date; not where outputs are compared."""
        from IPython.display import display

        display(self._bundle(), raw=True)
        if os.environ.get("KDKIT_STABLE") != "1":
            self._report = display(self._told(), display_id=True)

    def _update(self) -> None:
        if self._report is not None:
            self._report.update(self._told())

    def _told(self) -> Page:
        session = self.wizard.session
        if session is None:
            return Page(LIVES, "Nothing was done yet.")
        return Page(LIVES, session.summary())

    def close(self) -> None:
        """Take the wizard away: its widgets, its thread, and what listens to it."""
        self.wizard.close()

    def __repr__(self) -> str:
        return repr(self.wizard)


def open_wizard(desk: Desk, stage: str = "", line: str = "") -> Any:
    """A wizard, in place of the one that is open, whose pipeline it goes on with; plain words where there are no widgets.

    Args:
        desk: of the notebook.
        stage: "family" or "family.technique" whose form is to be shown.
        line: `%kd` line, `%%kd` cell or "@version" whose steps the pipeline begins with.

    Raises:
        KdError: there is no such technique, or the line can't be read.
    """
    if getattr(desk.shell, "kernel", None) is None:
        return in_words(desk, stage, line)
    from kdkit.notebook.wizard.window import Wizard

    # who asks for what is not there keeps the wizard that is open
    asked(desk, stage, line)
    stopped = _open[desk.shell].wizard.busy if desk.shell in _open else ""
    before = close(desk.shell)
    wizard = Wizard(desk, before.draft if before is not None else None, first="Pipeline" if stage or line else "")
    begin(wizard, stage, line)
    if stopped:
        wizard.say(f"{stopped} was stopped, as the wizard was opened anew; the session is whole")
    view = _open[desk.shell] = View(wizard)
    return view


def begin(wizard: Wizard, stage: str = "", line: str = "") -> None:
    """Show a technique's form, or the steps of a line or a version.

    Raises:
        KdError: there is no such technique or version, or the line can't be read.
    """
    draft, made = asked(wizard.desk, stage, line)
    if draft is not None:
        wizard.redraft(draft)
        wizard.open("Pipeline")
        if len(draft.steps) == 1 and "\n" not in draft.steps[0]:
            wizard.pane("Pipeline").edit(0)
    if made is not None:
        wizard.open("Pipeline")
        wizard.pane("Pipeline").choose(made)


def asked(desk: Desk, stage: str, line: str) -> tuple[Draft | None, type[Stage] | None]:
    """What is asked for: the draft of a line or a version, and the technique whose form is to be shown, a family's first by its name alone.

    Raises:
        KdError: there is no such technique or version, or the line can't be read.
    """
    from kdkit.notebook.wizard.draft import Draft
    from kdkit.plugins import manager

    family, _, technique = stage.partition(".")
    first = next((id for id in manager().stages() if id.startswith(f"{family}.")), stage) if stage and not technique else stage
    made = manager().stage(first) if stage else None
    if not line.startswith("@"):
        return Draft.of(line) if line else None, made
    version, session = desk.session.version(line), desk.session
    return replace(Draft.of(session.recipe(version).lines()), start=_begun_with(session, version)), made


def _begun_with(session: Session, version: Version) -> str:
    """The version whose model a version's recipe is for, if the session holds it: not where it was loaded, as what was loaded was made by steps too."""
    first = session.history.lineage(version)[0]
    return first.name if first.model is not None and "recipe" not in first.facts else ""


def close(shell: Any) -> Wizard | None:
    """Close the wizard of a shell, if one is open, and give what it was."""
    view = _open.pop(shell, None)
    if view is None:
        return None
    view.close()
    return view.wizard


def in_words(desk: Desk, stage: str = "", line: str = "") -> Page:
    """What a wizard would show, as text with the lines to write: for a terminal.

    Raises:
        KdError: there is no such technique or version, or the line can't be read.
    """
    from kdkit.notebook.help import about, techniques

    draft, _ = asked(desk, stage, line)
    where = desk.session.status() if desk.has_session else "There is no model yet."
    if draft is not None:
        return Page(
            "Here are no widgets, so the wizard is these lines: what they would do, and then to do it.",
            where,
            Source(f"{replace(draft, dry_run=True).cell}\n\n{draft.cell}"),
        )
    offered = about([stage]) if stage else techniques()
    lines = "%kd use net --train {train} --eval {val}\n%kd help FAMILY TECHNIQUE\n%kd FAMILY TECHNIQUE --dry-run\n%kd FAMILY TECHNIQUE\n%kd compare\n%kd save small/"
    return Page("Here are no widgets, so the wizard is these lines.", where, offered, Source(lines))
