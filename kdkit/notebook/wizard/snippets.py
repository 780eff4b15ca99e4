"""Snippets: the pieces of HTML that a wizard is written with."""

from __future__ import annotations

import json
from html import escape

from kdkit.errors import KdError

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
.kdkit-wizard :focus-visible { outline: 2px solid currentColor; outline-offset: 1px; }
</style>"""
"""Of a wizard's own: the names of tabs that are not chosen stand out as little from their ground as 4.4 : 1 in JupyterLab,
it cuts off a label that is too long for its line, and the arrow of a list is black on a dark page."""

KEYS = "Keys: Tab and Shift-Tab move, Space and Enter press; Space opens a list, arrows choose in it. Letters go to JupyterLab unless you are in a text field."


def code(lines: str, insert: bool = True) -> str:
    """Lines of a cell, and a button that puts them into a new one below, where JupyterLab shows the page; elsewhere they can be copied.

    >>> "notebook:replace-selection" in code("%kd undo")
    True
    """
    shown = f"<pre><code>{escape(lines)}</code></pre>"
    if not insert or not lines:
        return shown
    # a Lab command on a plain button needs no script: two commands, which share their arguments
    asked = json.dumps({"commands": ["notebook:insert-cell-below", "notebook:replace-selection"], "args": {"text": lines}})
    button = (
        '<button type="button" class="jupyter-button lm-Widget" style="width:auto;margin:4px 0" title="JupyterLab puts these lines into a new cell below" '
        f'data-commandlinker-command="apputils:run-all-enabled" data-commandlinker-args="{escape(asked, quote=True)}">Insert below</button>'
    )
    return shown + button


def problem(error: KdError, word: str = "Not yet") -> str:
    """What is wrong and what to do about it, in words; the mark is no colour.

    >>> problem(KdError("no data", "%kd set --train {loader}"))
    '<p style="margin:2px 0"><b>✗ Not yet:</b> no data<br>→ %kd set --train {loader}</p>'
    """
    hints = "".join(f"<br>→ {escape(hint)}" for hint in error.hints)
    return f'<p style="margin:2px 0"><b>✗ {word}:</b> {escape(error.message)}{hints}</p>'


def status(text: str) -> str:
    """A line that a screen reader reads out when it changes."""
    return f'<div role="status" aria-live="polite">{escape(text)}</div>'


def heading(text: str) -> str:
    """Above a part of a tab."""
    return f'<p style="font-weight:600;margin:8px 0 2px">{escape(text)}</p>'
