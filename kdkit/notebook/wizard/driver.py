"""The driver: control a wizard from Python as a person would, by the labels of its tabs, controls and buttons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from kdkit.errors import KdError, did_you_mean
from kdkit.parameters.value_text import write_value
from kdkit.renaming import renamed_property

if TYPE_CHECKING:
    from kdkit.notebook.wizard.window import Wizard
    from kdkit.session.session import Session


class Driver:
    """Opens tabs, sets controls and presses buttons, as long as they are visible.

    Args:
        wizard: the wizard to control.
    """

    def __init__(self, wizard: Wizard):
        self.wizard = wizard

    @property
    def lines(self) -> str:
        """The displayed `%kd` lines, which do what the current tab is set to do."""
        return self.wizard.current.lines

    @property
    def session(self) -> Session | None:
        """The notebook's session, None if there is none yet."""
        return self.wizard.controller.session

    @property
    def message(self) -> str:
        """The last status and error, as text."""
        return self.wizard.controller.message

    told = renamed_property("told", "message")

    def open(self, tab: str) -> None:
        """Bring a tab to the front.

        Raises:
            KdError: there is no such tab.
        """
        titles = [tab.title for tab in self.wizard.tabs]
        if tab not in titles:
            raise KdError(f"the wizard has no tab {tab!r}", did_you_mean(tab, titles), f"its tabs are {', '.join(titles)}")
        self.wizard.open(tab)

    def set(self, control: str, value: Any) -> None:
        """Set a control of the current tab; an entry of a list is chosen by its text.

        Raises:
            KdError: no such control is visible, or its list has no such entry.
        """
        found = self._find(control, "control", lambda each: each.has_trait("value"))
        if not found.has_trait("options"):
            found.value = write_value(value) if isinstance(found.value, str) else value
            return
        entries = {str(entry[0] if isinstance(entry, tuple) else entry): at for at, entry in enumerate(found.options)}
        if str(value) not in entries:
            raise KdError(f"{control} offers no {value!r}", did_you_mean(str(value), entries), f"it offers {', '.join(entries)}")
        found.index = entries[str(value)]

    def press(self, button: str, wait: bool = True) -> None:
        """Press a button of the current tab.

        Args:
            button: its text.
            wait: wait until the action ends.

        Raises:
            KdError: no such button is visible, or it is disabled.
        """
        found = self._find(button, "button", lambda each: hasattr(each, "click") or each.has_trait("icon"))
        if found.disabled:
            raise KdError(f"{button} is disabled", "the tab shows why")
        if hasattr(found, "click"):
            found.click()
        else:
            found.value = not found.value
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until the running action ends."""
        self.wizard.controller.worker.wait()

    def _find(self, name: str, what: str, fits: Callable[[Any], bool]) -> Any:
        visible = {each.description: each for each in reversed([*_visible(self.wizard.current.box)]) if each.has_trait("description") and fits(each)}
        if name not in visible:
            raise KdError(f"the tab {self.wizard.current.title} shows no {what} {name!r}", did_you_mean(name, visible), f"it shows {', '.join(reversed(visible))}")
        return visible[name]


def _visible(widget: Any) -> Iterator[Any]:
    """A widget and its visible descendants, from top to bottom."""
    if widget.layout.display != "none":
        yield widget
        for child in getattr(widget, "children", ()):
            yield from _visible(child)
