"""What axe-core finds wrong with a part of a page for people who use a keyboard or a screen reader, or see little.

It can't judge the contrast of text in SVG; `tests/test_charts.py` looks at the colours of charts.
"""

from __future__ import annotations

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Locator

RUN = """async area => {
    // axe passes over what it takes for invisible: what is scrolled out of view, and in Lab all that overflows the body, which has no height
    area.scrollIntoView({ block: 'nearest' });
    const seen = area.getBoundingClientRect();
    if (seen.top < 0 || seen.bottom > innerHeight) throw Error(`${seen.height} pixels are more than the page can show; make the page higher`);
    document.body.style.height = '100vh';
    const found = await axe.run(area, { resultTypes: ['violations', 'passes'] });
    document.body.style.height = '';
    return {
        judged: [...found.passes, ...found.violations].filter(rule => rule.id === 'color-contrast').flatMap(rule => rule.nodes).length,
        violations: found.violations.flatMap(rule => rule.nodes.map(node =>
            `${rule.id} (${rule.impact}): ${node.html.slice(0, 200)}\\n    ${node.failureSummary.replaceAll(/\\s*\\n\\s*/g, ' ')}`)),
    };
}"""


def violations(area: Locator) -> list[str]:
    """One line for each element that breaks a rule: the rule, how bad, the element, and what would cure it."""
    if not area.page.evaluate("'axe' in window"):
        area.page.evaluate(AXE_SCRIPT)
    found = area.evaluate(RUN)
    assert found["judged"], "axe took all the text for invisible, and judged no contrast"
    return found["violations"]


def check(area: Locator) -> None:
    """Fail with every violation, readably."""
    found = violations(area)
    assert not found, "\n" + "\n".join(found)
