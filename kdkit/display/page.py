"""What verbs return beside tables: pages, lines of code, files that were written; each as stable text and as HTML."""

from __future__ import annotations

import os
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from kdkit.display.table import volatile
from kdkit.errors import printable, printable_lines


class Page:
    """Paragraphs and tables, one below the other.

    >>> Page("One.", Source("%kd undo"))
    One.
    <BLANKLINE>
    %kd undo
    """

    def __init__(self, *parts: Any) -> None:
        self.parts = tuple(part for part in parts if part != "")

    def __repr__(self) -> str:
        return "\n\n".join(printable_lines(part) if type(part) is str else repr(part) for part in self.parts)

    def _repr_html_(self) -> str:
        return "".join(_paragraph(part) if type(part) is str else part._repr_html_() for part in self.parts)


def _paragraph(text: str) -> str:
    return f'<p style="white-space: pre-wrap">{escape(text)}</p>'


class Source(str):
    """Lines for a cell.

    >>> Source("%kd undo")._repr_html_()
    '<pre style="margin: 0"><code>%kd undo</code></pre>'
    """

    def __repr__(self) -> str:
        return printable_lines(str(self))

    def _repr_html_(self) -> str:
        return f'<pre style="margin: 0"><code>{escape(self)}</code></pre>'


@dataclass(frozen=True, repr=False)
class Written(os.PathLike):
    """A file or folder that was written; it can be used as a path.

    >>> Written(Path("small.onnx"), "@slim was exported")
    @slim was exported to small.onnx
    """

    path: Path
    what: str

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return printable(f"{self.what} to {self._shown()}")

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.what)} to <code>{escape(self._shown())}</code></p>"

    def _shown(self) -> str:
        return volatile(str(self.path)) if self.path.is_absolute() else str(self.path)
