"""Pieces of HTML for the wizard."""

from __future__ import annotations

import json
from html import escape

STYLE = """<style>
.kdkit-wizard .lm-TabBar-tab { color: var(--jp-ui-font-color0, inherit) !important; }
.kdkit-wizard pre { margin: 0; white-space: pre-wrap; }
.kdkit-wizard .widget-html-content { line-height: 1.45; }
.kdkit-wizard .widget-hbox > .widget-label { white-space: normal; height: auto; }
.kdkit-wizard p, .kdkit-wizard ul { margin: 4px 0; }
.kdkit-wizard table { border-collapse: collapse; }
.kdkit-wizard th, .kdkit-wizard td { padding: 2px 8px; vertical-align: top; }
.kdkit-wizard select { appearance: auto !important; background-image: none !important; }
.kdkit-wizard input[type="checkbox"] { vertical-align: middle; margin: 0 6px 2px 0; }
.kdkit-wizard input::placeholder { color: inherit; opacity: .75; font-style: italic; }
.kdkit-wizard .kdkit-slider .widget-slider { flex: 1 1 6em; min-width: 5em; }
.kdkit-wizard .kdkit-unset .noUi-connect, .kdkit-wizard .kdkit-unset .noUi-handle { opacity: .55; }
.kdkit-wizard :focus-visible { outline: 2px solid currentColor; outline-offset: 1px; }
</style>"""
"""Fixes for JupyterLab: unselected tabs have a contrast of only 4.4 : 1, long labels are cut off, and the arrow of a list is black
on a dark page."""

LABELS = """<style onload="
    const area = this.closest('.kdkit-wizard');
    const label = () => area.querySelectorAll('.kdkit-slider').forEach(row => {
        const handle = row.querySelector('.noUi-handle'), name = row.querySelector('label')?.textContent, value = row.querySelector('input');
        for (const [key, text] of [['aria-label', name + ', slider'], ['aria-valuetext', value?.value || value?.placeholder]])
            if (handle && handle.getAttribute(key) !== text) handle.setAttribute(key, text);
    });
    if (area && !area.labelled) { area.labelled = new MutationObserver(label); area.labelled.observe(area, { childList: true, subtree: true }); }
    label();
"></style>"""
"""Names the handles of sliders for screen readers, by the field beside each, as ipywidgets gives them no name. A constant script: no name
is ever written into it. Where scripts don't run, the fields beside the sliders, which have names, do the same."""

KEYS = (
    "Keys: Tab and Shift-Tab move the focus, Space and Enter press a button; Space opens a list, arrow keys select. "
    "Outside text fields, letters are JupyterLab shortcuts."
)


def code(lines: str, insert: bool = True) -> str:
    """Lines of a cell, and a button that inserts them as a new cell below (JupyterLab only).

    >>> "notebook:replace-selection" in code("%kd undo")
    True
    """
    shown = f"<pre><code>{escape(lines)}</code></pre>"
    if not insert or not lines:
        return shown
    # a Lab command on a plain button needs no script: two commands, which share their arguments
    arguments = json.dumps({"commands": ["notebook:insert-cell-below", "notebook:replace-selection"], "args": {"text": lines}})
    button = (
        '<button type="button" class="jupyter-button lm-Widget" style="width:auto;margin:4px 0" title="JupyterLab puts these lines into a new cell below" '
        f'data-commandlinker-command="apputils:run-all-enabled" data-commandlinker-args="{escape(arguments, quote=True)}">Insert below</button>'
    )
    return shown + button


def status(text: str) -> str:
    """A status line; screen readers announce its changes."""
    return f'<div role="status" aria-live="polite">{escape(text)}</div>'


def heading(text: str) -> str:
    """The heading of a part of a tab."""
    return f'<p style="font-weight:600;margin:8px 0 2px">{escape(text)}</p>'
