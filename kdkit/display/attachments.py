"""Attachments of a version as text and HTML."""

from __future__ import annotations

from html import escape
from typing import Any

from kdkit.errors import describe_exception, printable_lines


def as_text(attachment: Any) -> str:
    """An attachment as text; if its `__repr__` fails, a line that says so."""
    try:
        return printable_lines(repr(attachment))
    except Exception as error:
        return f"an attachment, {type(attachment).__name__}, could not be shown: {describe_exception(error)}"


def as_html(attachment: Any) -> str:
    """An attachment as HTML; its text where it has none."""
    try:
        return str(attachment._repr_html_()) if hasattr(attachment, "_repr_html_") else f"<pre>{escape(as_text(attachment))}</pre>"
    except Exception as error:
        return f"<pre>{escape(as_text(attachment))}\n(as text, since its HTML failed: {escape(describe_exception(error))})</pre>"
