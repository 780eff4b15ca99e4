"""A pane: what one tab of a wizard shows. Small things that all panes use stand here too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import ipywidgets as widgets

if TYPE_CHECKING:
    from kdkit.notebook.wizard.window import Wizard


class Pane:
    """What one tab shows; a subclass fills `box` when it is first opened, and says which lines stand for what it is set to.

    Attributes:
        box: the widget.
    """

    title: ClassVar[str]

    def __init__(self, wizard: Wizard):
        self.wizard = wizard
        self.box: Any = widgets.VBox()

    def build(self) -> None:
        """Fill the box; called once, before the tab is first shown."""

    @property
    def lines(self) -> str:
        """The `%kd` lines that do what this pane is set to do."""
        return ""

    def refresh(self) -> None:
        """Show the session as it stands."""

    def busy(self, busy: bool) -> None:
        """Show that something runs (True), or that nothing does. No button is disabled for it: the one that was pressed would lose the focus."""

    def unseen(self) -> Iterable[Any]:
        """Widgets that are held and not shown at the moment."""
        return ()

    def button(self, text: str, hint: str, work: Callable[[], None], style: str = "") -> Any:
        """A button as wide as its text; what is wrong with its work is said, and not lost in a log."""

        def press(button: Any) -> None:
            try:
                with self.wizard.turn:
                    work()
            except Exception as error:
                self.wizard.say("", error)

        made = widgets.Button(description=text, tooltip=hint, button_style=style, layout={"width": "auto", "align_self": "flex-start"})
        made.on_click(press)
        return made


def write(widget: Any, html: str) -> None:
    """Show something, unless it is shown already: writing the same again throws a reader out of it."""
    if widget.value != html:
        widget.value = html


def close(widget: Any) -> None:
    """Take a widget away with all that it holds; nothing listens to it any more."""
    for child in getattr(widget, "children", ()):
        close(child)
    widget.unobserve_all()
    for part in ("layout", "style"):
        if isinstance(getattr(widget, part, None), widgets.Widget):
            getattr(widget, part).close()
    widget.close()
