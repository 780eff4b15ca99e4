"""The base class of a wizard's tabs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import ipywidgets as widgets

if TYPE_CHECKING:
    from kdkit.notebook.wizard.controller import Controller


class Tab:
    """One tab. A subclass fills `box` when the tab is first opened, and says which lines do what the tab is set to do.

    Args:
        controller: of the wizard.

    Attributes:
        box: the widget.
    """

    title: ClassVar[str]

    def __init__(self, controller: Controller):
        self.controller = controller
        self.box: Any = widgets.VBox()

    def build(self) -> None:
        """Fill the box; called once, before the tab is first shown."""

    @property
    def lines(self) -> str:
        """The `%kd` lines that do what the tab is set to do."""
        return ""

    def refresh(self) -> None:
        """Update what the tab shows of the session."""

    def busy(self, busy: bool) -> None:
        """Show whether an action is running. Buttons stay enabled: disabling the pressed one would move the focus away from it."""

    def unseen(self) -> Iterable[Any]:
        """Widgets that the tab holds but doesn't show at the moment."""
        return ()

    def button(self, text: str, hint: str, work: Callable[[], None], style: str = "") -> Any:
        """A button as wide as its text; an error of `work` is displayed, not lost in a log."""

        def press(button: Any) -> None:
            try:
                with self.controller.turn:
                    work()
            except Exception as error:
                self.controller.say("", error)

        made = widgets.Button(description=text, tooltip=hint, button_style=style, layout={"width": "auto", "align_self": "flex-start"})
        made.on_click(press)
        return made
