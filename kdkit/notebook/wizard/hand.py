"""A hand: a wizard worked from Python as a person works it, by what stands on its tabs, controls and buttons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from kdkit.errors import KdError, did_you_mean

if TYPE_CHECKING:
    from kdkit.notebook.wizard.window import Wizard


class Hand:
    """Opens tabs, sets controls and presses buttons; only those that can be seen.

    Args:
        wizard: that is worked.
    """

    def __init__(self, wizard: Wizard):
        self.wizard = wizard

    @property
    def lines(self) -> str:
        """The `%kd` lines that are shown: they do what the tab in front is set to do."""
        return self.wizard.current.lines

    @property
    def told(self) -> str:
        """What the wizard said last, as text."""
        return self.wizard.told

    def open(self, tab: str) -> None:
        """Bring a tab to the front.

        Raises:
            KdError: there is no such tab.
        """
        titles = [pane.title for pane in self.wizard.panes]
        if tab not in titles:
            raise KdError(f"the wizard has no tab {tab!r}", did_you_mean(tab, titles), f"its tabs are {', '.join(titles)}")
        self.wizard.open(tab)

    def set(self, control: str, value: Any) -> None:
        """Set a control of the tab in front; a list's entry is meant by what is read there.

        Raises:
            KdError: no such control is to be seen, or its list has no such entry.
        """
        found = self._find(control, "control", lambda each: each.has_trait("value"))
        if not found.has_trait("options"):
            found.value = value
            return
        entries = {str(entry[0] if isinstance(entry, tuple) else entry): at for at, entry in enumerate(found.options)}
        if str(value) not in entries:
            raise KdError(f"{control} offers no {value!r}", did_you_mean(str(value), entries), f"it offers {', '.join(entries)}")
        found.index = entries[str(value)]

    def press(self, button: str, wait: bool = True) -> None:
        """Press a button of the tab in front.

        Args:
            wait: until what it began is over.

        Raises:
            KdError: no such button is to be seen, or it can't be pressed at the moment.
        """
        found = self._find(button, "button", lambda each: hasattr(each, "click") or each.has_trait("icon"))
        if found.disabled:
            raise KdError(f"{button} can't be pressed at the moment", "look at what the tab says")
        if hasattr(found, "click"):
            found.click()
        else:
            found.value = not found.value
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until what was begun is over."""
        self.wizard.worker.wait()

    def _find(self, name: str, what: str, fits: Callable[[Any], bool]) -> Any:
        seen = {each.description: each for each in reversed([*_seen(self.wizard.current.box)]) if each.has_trait("description") and fits(each)}
        if name not in seen:
            raise KdError(f"the tab {self.wizard.current.title} shows no {what} {name!r}", did_you_mean(name, seen), f"it shows {', '.join(reversed(seen))}")
        return seen[name]


def _seen(widget: Any) -> Iterator[Any]:
    """A widget and all that it holds, from top to bottom, without what is hidden."""
    if widget.layout.display != "none":
        yield widget
        for child in getattr(widget, "children", ()):
            yield from _seen(child)
