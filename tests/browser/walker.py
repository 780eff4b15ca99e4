"""A walker: a user with a keyboard and no mouse, who finds controls by their names."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import Locator, Page, expect

WITHIN = 50
"""After so many presses of Tab a user gives up."""

DIRECTION = """(wanted, area) => {
    const at = document.activeElement, label = at.getAttribute('aria-label') || at.labels?.[0]?.innerText || at.innerText?.slice(0, 40) || at.title || at.tagName;
    const key = at === wanted ? '' : at.compareDocumentPosition(wanted) & Node.DOCUMENT_POSITION_FOLLOWING ? 'Tab' : 'Shift+Tab';
    return { key, at: area.contains(at) ? label : `${label} (outside)` };
}"""
"""The key that leads from the focused element towards another, and the label of the focused element."""


class Walker:
    """Uses a part of a page by keyboard only. The focus must stay in that part, whatever key is pressed.

    Args:
        page: the browser's page.
        area: the part of it.
    """

    def __init__(self, page: Page, area: Locator) -> None:
        self.area, self.keys = area, page.keyboard

    def stays(self) -> None:
        """Check that the focus is in the area."""
        expect(self.area.locator(":focus"), "the focus was lost").to_have_count(1, timeout=5000)

    def to(self, role: Any, name: str | re.Pattern[str]) -> Locator:
        """Move the focus to the control with this role and name."""
        return self.go(self.area.get_by_role(role, name=name, exact=True))

    def go(self, wanted: Locator) -> Locator:
        """Move the focus to a control by Tab or Shift+Tab."""
        expect(wanted).to_be_visible()
        self.stays()
        area, passed = self.area.element_handle(), []
        for _ in range(WITHIN):
            found = wanted.evaluate(DIRECTION, area)
            if not found["key"]:
                return wanted
            passed.append(found["at"])
            self.keys.press(found["key"])
        raise AssertionError(f"{wanted} was not reached with {WITHIN} presses of Tab; the focus visited {', '.join(passed)}")

    def press(self, name: str) -> None:
        """Press a button."""
        expect(self.to("button", name)).to_be_enabled()
        self.keys.press("Enter")
        self.stays()

    def open(self, title: str) -> None:
        """Open a tab of the form: the Tab key reaches one of them, the arrow keys the others."""
        titles = self.area.get_by_role("tab").all_inner_texts()
        at = titles.index(self.to("tab", self.area.locator("[role=tab][tabindex='0']").inner_text()).inner_text())
        for _ in range(abs(titles.index(title) - at)):
            self.keys.press("ArrowRight" if titles.index(title) > at else "ArrowLeft")
        self.keys.press("Enter")
        expect(self.area.get_by_role("tab", name=title, exact=True)).to_have_attribute("aria-selected", "true")
        self.stays()

    def choose(self, name: str, option: str) -> None:
        """Choose from a drop-down list: Space opens it, the arrow keys select."""
        chosen = self.to("combobox", name)
        expect(chosen.locator("option").get_by_text(option, exact=True), f"{name} does not offer {option}").to_have_count(1)
        options, at = chosen.evaluate("list => [[...list.options].map(option => option.label), list.selectedIndex]")
        self.keys.press("Space")
        for _ in range(abs(options.index(option) - at)):
            self.keys.press("ArrowDown" if options.index(option) > at else "ArrowUp")
        self.keys.press("Enter")
        expect(chosen.locator("option:checked")).to_have_text(option)
        self.stays()

    def write(self, role: Any, name: str, text: str) -> None:
        """Replace the text of a field."""
        field = self.to(role, name)
        self.keys.press("Control+a")
        self.keys.type(text)
        expect(field).to_have_value(text)
