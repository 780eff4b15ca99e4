"""A walker: a person with a keyboard and no mouse, who goes from control to control by their names."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import Locator, Page, expect

WITHIN = 50
"""Presses of Tab after which nobody goes on."""

DIRECTION = """(wanted, area) => {
    const at = document.activeElement, told = at.getAttribute('aria-label') || at.labels?.[0]?.innerText || at.innerText?.slice(0, 40) || at.title || at.tagName;
    const key = at === wanted ? '' : at.compareDocumentPosition(wanted) & Node.DOCUMENT_POSITION_FOLLOWING ? 'Tab' : 'Shift+Tab';
    return { key, at: area.contains(at) ? told : `${told} (outside)` };
}"""
"""Which key leads from where the focus is to an element, and what has the focus."""


class Walker:
    """Uses a part of a page by keyboard alone. Whatever is pressed, the focus must stay in it: who loses it is lost.

    Args:
        page: of the browser.
        area: the part.
    """

    def __init__(self, page: Page, area: Locator) -> None:
        self.area, self.keys = area, page.keyboard

    def stays(self) -> None:
        """The focus is in the area."""
        expect(self.area.locator(":focus"), "the focus was lost").to_have_count(1, timeout=5000)

    def to(self, role: Any, name: str | re.Pattern[str]) -> Locator:
        """Go to the control of that role and name."""
        return self.go(self.area.get_by_role(role, name=name, exact=True))

    def go(self, wanted: Locator) -> Locator:
        """Go to a control by Tab, forward or back, as one who knows the form."""
        expect(wanted).to_be_visible()
        self.stays()
        area, passed = self.area.element_handle(), []
        for _ in range(WITHIN):
            found = wanted.evaluate(DIRECTION, area)
            if not found["key"]:
                return wanted
            passed.append(found["at"])
            self.keys.press(found["key"])
        raise AssertionError(f"{wanted} is not reached with {WITHIN} Tabs; the focus went over {', '.join(passed)}")

    def press(self, name: str) -> None:
        """Press a button."""
        expect(self.to("button", name)).to_be_enabled()
        self.keys.press("Enter")
        self.stays()

    def open(self, title: str) -> None:
        """Open a tab: Tab leads to one of them, arrows from there to the others."""
        titles = self.area.get_by_role("tab").all_inner_texts()
        at = titles.index(self.to("tab", self.area.locator("[role=tab][tabindex='0']").inner_text()).inner_text())
        for _ in range(abs(titles.index(title) - at)):
            self.keys.press("ArrowRight" if titles.index(title) > at else "ArrowLeft")
        self.keys.press("Enter")
        expect(self.area.get_by_role("tab", name=title, exact=True)).to_have_attribute("aria-selected", "true")
        self.stays()

    def choose(self, name: str, option: str) -> None:
        """Choose from a list that drops down: Space opens it, arrows choose."""
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
        """Write into a field, in place of what stands there."""
        field = self.to(role, name)
        self.keys.press("Control+a")
        self.keys.type(text)
        expect(field).to_have_value(text)
