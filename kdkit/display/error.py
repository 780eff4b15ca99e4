"""An error as HTML."""

from __future__ import annotations

from html import escape

from kdkit.errors import KdError


def problem(error: KdError, word: str = "Not yet") -> str:
    """What is wrong and what to do about it, in words; the mark is no colour.

    >>> problem(KdError("no data", "%kd set --train {loader}"))
    '<p style="margin:2px 0"><b>✗ Not yet:</b> no data<br>→ %kd set --train {loader}</p>'
    """
    hints = "".join(f"<br>→ {escape(hint)}" for hint in error.hints)
    return f'<p style="margin:2px 0"><b>✗ {word}:</b> {escape(error.message)}{hints}</p>'
