"""Helpers for ipywidgets: update HTML, close a widget."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets


def write(widget: Any, html: str) -> None:
    """Set the HTML of a widget if it changed: setting the same text again would interrupt a screen reader."""
    if widget.value != html:
        widget.value = html


def close(widget: Any) -> None:
    """Close a widget and its descendants, and remove their callbacks."""
    for child in getattr(widget, "children", ()):
        close(child)
    widget.unobserve_all()
    for part in ("layout", "style"):
        if isinstance(getattr(widget, part, None), widgets.Widget):
            getattr(widget, part).close()
    widget.close()
