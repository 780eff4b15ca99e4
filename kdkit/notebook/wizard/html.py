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
.kdkit-wizard .kdkit-cards { flex-flow: row wrap; align-items: stretch; gap: 10px 22px; overflow: visible; margin: 4px 0 10px; }
.kdkit-wizard .kdkit-card { position: relative; flex: 1 1 15em; min-width: 14em; max-width: 22em; justify-content: space-between; padding: 8px 10px; overflow: visible;
    border: 1px solid var(--jp-border-color1, #bdbdbd); border-radius: 4px; }
.kdkit-wizard .kdkit-card:not(:last-child)::after { content: '→'; position: absolute; right: -18px; top: 50%; transform: translateY(-50%); }
.kdkit-wizard .kdkit-separate > .kdkit-card { max-width: none; }
.kdkit-wizard .kdkit-separate > .kdkit-card::after { content: none !important; }
.kdkit-wizard .kdkit-card ol { margin: 4px 0; padding-left: 1.4em; }
.kdkit-wizard .kdkit-card[draggable="true"] { cursor: grab; }
.kdkit-wizard .kdkit-card.kdkit-over { outline: 2px dashed currentColor; }
.kdkit-wizard .kdkit-add { flex: 0 0 auto !important; min-width: 0; justify-content: center; border-style: dashed; }
.kdkit-wizard .kdkit-card .widget-html { width: 100%; margin: 0; }
.kdkit-wizard .kdkit-card .widget-html-content { width: 100%; min-width: 0; white-space: normal; overflow-wrap: anywhere; }
.kdkit-wizard .kdkit-card .kdkit-figures { font-size: 12px; }
.kdkit-wizard .kdkit-small .jupyter-button { height: 24px; line-height: 22px; padding: 0 6px; font-size: 12px; margin: 1px; }
.kdkit-wizard .kdkit-figures { margin: 4px 0; }
.kdkit-wizard .kdkit-figures th { font-weight: normal; text-align: left; padding: 0 8px 0 0; opacity: .85; white-space: nowrap; }
.kdkit-wizard .kdkit-figures td { padding: 0 8px 0 0; white-space: nowrap; }
.kdkit-wizard .kdkit-bar { display: inline-block; width: 4em; height: .6em; border: 1px solid currentColor; border-radius: 2px; }
.kdkit-wizard .kdkit-bar span { display: block; height: 100%; background: currentColor; }
.kdkit-wizard .kdkit-card .kdkit-bar { display: none; }
.kdkit-wizard .kdkit-panel { border: 1px solid var(--jp-border-color1, #bdbdbd); border-radius: 4px; padding: 6px 12px; margin: 4px 0; }
.kdkit-wizard .kdkit-palette { margin: 4px 0; }
.kdkit-wizard .kdkit-palette > .widget-hbox { align-items: baseline; flex-wrap: wrap; }
.kdkit-wizard .kdkit-palette .jupyter-button { min-width: 16.5em; text-align: left; }
@media (min-width: 900px) { .kdkit-wizard .kdkit-curves .widget-html-content > div { display: inline-block; vertical-align: top; margin-right: 12px !important; } }
.kdkit-wizard .kdkit-cell { display: inline-block; min-width: 15em; margin-right: 8px; white-space: nowrap; }
.kdkit-wizard .kdkit-kind { display: inline-block; min-width: 7em; }
.kdkit-wizard .kdkit-layers .widget-html-content { white-space: normal; }
.kdkit-wizard .kdkit-results [role=listitem] { cursor: pointer; }
.kdkit-wizard summary { cursor: pointer; }
.kdkit-wizard :focus-visible { outline: 2px solid currentColor; outline-offset: 1px; }
</style>"""
"""Fixes for JupyterLab: unselected tabs have a contrast of only 4.4 : 1, long labels are cut off, and the arrow of a list is black
on a dark page."""

SCRIPT = """<style onload="
    const area = this.closest('.kdkit-wizard');
    const cards = () => [...area.querySelectorAll('.kdkit-card:has(.kdkit-earlier)')];
    const update = () => {
        area.querySelectorAll('.kdkit-slider').forEach(row => {
            const handle = row.querySelector('.noUi-handle'), name = row.querySelector('label')?.textContent, value = row.querySelector('input');
            for (const [key, text] of [['aria-label', name + ', slider'], ['aria-valuetext', value?.value || value?.placeholder]])
                if (handle && handle.getAttribute(key) !== text) handle.setAttribute(key, text);
        });
        cards().forEach(card => { if (!card.draggable) card.draggable = true; });
    };
    if (area && !area.watched) {
        let from = null;
        area.watched = new MutationObserver(update);
        area.watched.observe(area, { childList: true, subtree: true });
        const over = event => cards().indexOf(event.target.closest?.('.kdkit-card'));
        const mark = at => cards().forEach((card, index) => card.classList.toggle('kdkit-over', index === at && at !== from));
        const choose = event => {
            const point = event.target.closest?.('.kdkit-results [role=listitem]'), list = area.querySelector('.kdkit-chosen select');
            if (!point || !list || (event.type === 'keydown' && event.key !== 'Enter')) return;
            const at = [...list.options].findIndex(option => point.getAttribute('aria-label').startsWith(option.text + ':'));
            if (at >= 0) { list.selectedIndex = at; list.dispatchEvent(new Event('change', { bubbles: true })); }
        };
        area.addEventListener('click', choose);
        area.addEventListener('keydown', choose);
        area.addEventListener('dragstart', event => { from = over(event); event.dataTransfer?.setData('text/plain', ''); });
        area.addEventListener('dragover', event => { if (from !== null && from >= 0 && over(event) >= 0) { event.preventDefault(); mark(over(event)); } });
        area.addEventListener('dragend', () => { from = null; mark(-1); });
        area.addEventListener('drop', event => {
            const to = over(event), all = cards();
            if (from === null || from < 0 || to < 0) return;
            event.preventDefault();
            event.stopPropagation();
            for (let at = from; at > to; at--) all[at].querySelector('.kdkit-earlier').click();
            for (let at = from; at < to; at++) all[at].querySelector('.kdkit-later').click();
            from = null;
            mark(-1);
        });
    }
    if (area) update();
"></style>"""
"""What ipywidgets does not do: name the handles of sliders for screen readers, by the field beside each, move cards by drag, which presses
their buttons, and choose the version of a point in its list. A constant: no name is ever written into it. Where scripts don't run, fields, buttons
and lists do the same."""

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
