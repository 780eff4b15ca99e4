"""Launch: the output of `%kd wizard`, with widgets, as text in a terminal, and after the kernel has stopped."""

from __future__ import annotations

import os
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any

from kdkit.display.page import Page, Source
from kdkit.notebook.wizard.driver import Driver

if TYPE_CHECKING:
    from kdkit.notebook.wizard.draft import Draft
    from kdkit.notebook.wizard.window import Wizard
    from kdkit.notebook.workspace import Workspace
    from kdkit.session.history import Version
    from kdkit.session.session import Session
    from kdkit.stages.stage import Stage

NO_KERNEL = "This report stays in the notebook. The forms of %kd wizard need a running kernel: run the cell again to restore them."
"""Shown in place of the forms; JupyterLab itself would show "Error displaying widget: model not found"."""

_open: dict[Any, WizardDisplay] = {}
"""The open wizard of each shell."""


class WizardDisplay(Driver):
    """The output of `%kd wizard`: the widget, and below it a report that remains without the kernel. Code can control it too.

    Args:
        wizard: the wizard to display.
    """

    def __init__(self, wizard: Wizard):
        super().__init__(wizard)
        self._report: Any = None
        wizard.controller.after_each(self._update)

    def _bundle(self) -> dict[str, Any]:
        return {**self.wizard.box._repr_mimebundle_(), "text/plain": repr(self), "text/html": f"<p>{escape(NO_KERNEL)}</p>"}

    def _ipython_display_(self) -> None:
        """Display the widget, and below it the report, which follows the session unless `KDKIT_STABLE` is set."""
        from IPython.display import display

        display(self._bundle(), raw=True)
        if os.environ.get("KDKIT_STABLE") != "1":
            self._report = display(self._page(), display_id=True)

    def _update(self) -> None:
        if self._report is not None:
            self._report.update(self._page())

    def _page(self) -> Page:
        session = self.wizard.controller.session
        if session is None:
            return Page(NO_KERNEL, "There is no session yet.")
        return Page(NO_KERNEL, session.show("report"))

    def close(self) -> None:
        """Close the wizard: its widgets, its thread and its callbacks."""
        self.wizard.close()

    def __repr__(self) -> str:
        return repr(self.wizard)


def open_wizard(workspace: Workspace, stage: str = "", line: str = "") -> Any:
    """Open a wizard, or return its lines as text where there are no widgets. It replaces an open one and keeps its pipeline.

    Args:
        workspace: of the notebook.
        stage: "family" or "family.technique" whose form to show.
        line: a `%kd` line, a `%%kd` cell or a "@version" whose steps to start with.

    Raises:
        KdError: there is no such technique, or the line can't be read.
    """
    if getattr(workspace.shell, "kernel", None) is None:
        return in_words(workspace, stage, line)
    from kdkit.notebook.wizard.window import Wizard

    # a wrong argument leaves the open wizard as it is
    requested(workspace, stage, line)
    stopped = _open[workspace.shell].wizard.controller.busy if workspace.shell in _open else ""
    before = close(workspace.shell)
    wizard = Wizard(workspace, before.controller.draft if before is not None else None, first="Build" if stage or line else "")
    begin(wizard, stage, line)
    if stopped:
        wizard.controller.say(f"{stopped} was stopped, as the wizard was opened again; the session is unchanged")
    view = _open[workspace.shell] = WizardDisplay(wizard)
    return view


def begin(wizard: Wizard, stage: str = "", line: str = "") -> None:
    """Show the form of a technique, or the steps of a line or a version.

    Raises:
        KdError: there is no such technique or version, or the line can't be read.
    """
    draft, made = requested(wizard.controller.workspace, stage, line)
    if draft is not None:
        wizard.controller.redraft(draft)
        wizard.open("Build")
        if len(draft.steps) == 1 and "\n" not in draft.steps[0]:
            wizard.tab("Build").edit(0)
    if made is not None:
        wizard.open("Build")
        wizard.tab("Build").choose(made)


def requested(workspace: Workspace, stage: str, line: str) -> tuple[Draft | None, type[Stage] | None]:
    """The draft of a line or a version, and the technique whose form to show; for a family alone, its first one.

    Raises:
        KdError: there is no such technique or version, or the line can't be read.
    """
    from kdkit.notebook.wizard.draft import Draft
    from kdkit.plugins.manager import manager

    family, _, technique = stage.partition(".")
    first = next((id for id in manager().stages() if id.startswith(f"{family}.")), stage) if stage and not technique else stage
    made = manager().stage(first) if stage else None
    if not line.startswith("@"):
        return Draft.of(line) if line else None, made
    version, session = workspace.session.version(line), workspace.session
    return replace(Draft.of(session.recipe(version).lines()), start=_start_of(session, version)), made


def _start_of(session: Session, version: Version) -> str:
    """The version from which a version's recipe starts, if the session holds it; empty for a loaded version, whose recipe includes earlier steps."""
    first = session.history.lineage(version)[0]
    return first.name if first.model is not None and "recipe" not in first.facts else ""


def close(shell: Any) -> Wizard | None:
    """Close the wizard of a shell and return it, None if none is open."""
    view = _open.pop(shell, None)
    if view is None:
        return None
    view.close()
    return view.wizard


def in_words(workspace: Workspace, stage: str = "", line: str = "") -> Page:
    """The wizard as text with lines to run, for a terminal.

    Raises:
        KdError: there is no such technique or version, or the line can't be read.
    """
    from kdkit.notebook.help_pages import about, techniques

    draft, _ = requested(workspace, stage, line)
    where = workspace.session.status() if workspace.has_session else "There is no model yet."
    if draft is not None:
        return Page(
            "No widgets are available here. These lines do the same: the first predicts, the second runs.",
            where,
            Source(f"{replace(draft, dry_run=True).cell}\n\n{draft.cell}"),
        )
    offered = about([stage]) if stage else techniques()
    lines = "%kd use net --train {train} --eval {val}\n%kd help FAMILY TECHNIQUE\n%kd FAMILY TECHNIQUE --dry-run\n%kd FAMILY TECHNIQUE\n%kd compare\n%kd save small/"
    return Page("No widgets are available here. These lines do the same as the wizard.", where, offered, Source(lines))
