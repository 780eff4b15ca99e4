"""What axe-core finds wrong with a part of a page for people who use a keyboard or a screen reader, or see little."""

from __future__ import annotations

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Locator


def violations(area: Locator) -> list[str]:
    """One line for each element that breaks a rule: the rule, how bad, the element, and what would cure it."""
    area.page.evaluate(AXE_SCRIPT)
    return area.evaluate(
        """async area => {
            // Lab's body has no height and hides what overflows: axe would take everything for invisible, and judge no contrast
            document.body.style.height = '100vh';
            try {
                const found = await axe.run(area, { resultTypes: ['violations'] });
                return found.violations.flatMap(rule => rule.nodes.map(node =>
                    `${rule.id} (${rule.impact}): ${node.html.slice(0, 200)}\\n    ${node.failureSummary.replaceAll(/\\s*\\n\\s*/g, ' ')}`));
            } finally {
                document.body.style.height = '';
            }
        }"""
    )


def check(area: Locator) -> None:
    """Fail with every violation, readably."""
    found = violations(area)
    assert not found, "\n" + "\n".join(found)
