"""The window of a wizard: tabs, the status, and the `%kd` lines that do what the current tab is set to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from kdkit.display.error import problem
from kdkit.errors import Cancelled, KdError
from kdkit.forms.widgets import close, write
from kdkit.notebook.wizard.controller import Controller
from kdkit.notebook.wizard.html import KEYS, SCRIPT, STYLE, code, status
from kdkit.notebook.wizard.tabs import TABS

if TYPE_CHECKING:
    from kdkit.notebook.wizard.draft import Draft
    from kdkit.notebook.wizard.tab import Tab
    from kdkit.notebook.workspace import Workspace


class Wizard:
    """The widget of `%kd wizard`.

    Args:
        workspace: the notebook's.
        draft: the pipeline to start with.
        first: title of the tab to open.

    Attributes:
        box: the widget.
        controller: the wizard's state and actions.
        tabs: the tabs in order.
    """

    def __init__(self, workspace: Workspace, draft: Draft | None = None, first: str = ""):
        self.controller = Controller(workspace, self, draft)
        self.tabs: list[Tab] = [tab(self.controller) for tab in TABS]
        self._built = [False] * len(self.tabs)
        self._code, self._status, self._problem = widgets.HTML(), widgets.HTML(status("")), widgets.HTML()
        self.tab_bar = widgets.Tab([tab.box for tab in self.tabs], titles=[tab.title for tab in self.tabs])
        help_line = widgets.HTML(f'<small style="opacity:.85">{KEYS}</small>')
        self.box = widgets.VBox([widgets.HTML(STYLE), widgets.HTML(SCRIPT), self.tab_bar, self._problem, self._status, self._code, help_line])
        self.box.add_class("kdkit-wizard")
        self.tab_bar.selected_index = self._index(first) if first else 0
        self.tab_bar.observe(self._opened, "selected_index")
        self._opened()

    # tabs

    @property
    def current(self) -> Tab:
        """The tab in front."""
        return self.tabs[self.tab_bar.selected_index or 0]

    def tab(self, title: str) -> Any:
        """A tab by its title, built if it was not yet."""
        index = self._index(title)
        self._build(index)
        return self.tabs[index]

    def is_built(self, title: str) -> bool:
        """Whether a tab was shown or requested before."""
        return self._built[self._index(title)]

    def open(self, title: str) -> None:
        """Bring a tab to the front."""
        self.tab_bar.selected_index = self._index(title)

    def _index(self, title: str) -> int:
        return next(index for index, tab in enumerate(self.tabs) if tab.title == title)

    def _build(self, index: int) -> None:
        if not self._built[index]:
            self._built[index] = True
            self.tabs[index].build()
            self.tabs[index].busy(bool(self.controller.busy))

    def _opened(self, change: Any = None) -> None:
        self._build(self.tab_bar.selected_index or 0)
        if not self.controller.busy:
            self.controller.say("")
        self.refresh()

    # display

    def refresh(self) -> None:
        """Update the current tab and its lines; other tabs are updated when they are opened."""
        self.current.refresh()
        self.show_lines()

    def show_lines(self) -> None:
        """Show the lines of the current tab."""
        lines = self.current.lines
        write(self._code, f"<b>The same in a cell</b>{code(lines)}" if lines else "")

    def show_message(self, text: str, error: KdError | None = None) -> None:
        """Show the status and, if there is one, the error."""
        write(self._status, status(text))
        heading = "Stopped" if isinstance(error, Cancelled) else "Error"
        # screen readers announce an alert only when its element is created
        write(self._problem, "" if error is None else f'<div role="alert">{problem(error, heading)}</div>')

    def show_busy(self, busy: bool) -> None:
        """Show on every tab whether a line is running."""
        for tab, built in zip(self.tabs, self._built, strict=True):
            if built:
                tab.busy(busy)

    def close(self) -> None:
        """Cancel the running action and remove every widget."""
        self.controller.stop()
        for tab, built in zip(self.tabs, self._built, strict=True):
            for widget in tab.unseen() if built else ():
                close(widget)
        close(self.box)

    def __repr__(self) -> str:
        session, draft = self.controller.session, self.controller.draft
        where = f"on {draft.start or session.head.name}" if session else "without a model yet"
        steps = len(draft.steps)
        return f"kdkit wizard: {steps} step{'s' * (steps != 1)} {where}"
