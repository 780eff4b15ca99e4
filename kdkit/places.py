"""Places: where in an author's code an error came from, as a person finds it: a line of a cell, or of a module."""

from __future__ import annotations

import linecache
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType


@dataclass(frozen=True)
class Place:
    """A line of someone's code.

    Attributes:
        file: "Cell In[3]", or a module's file name.
        line: its number, from 1.
        code: what stands there; empty where the source is not at hand.
    """

    file: str
    line: int
    code: str = ""

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


def raised_at(error: BaseException, module: str) -> Place | None:
    """The innermost line that a module's package, or a cell, had to do with an error; None where it had nothing to do with it.

    >>> try:
    ...     1 / 0
    ... except ZeroDivisionError as error:
    ...     raised_at(error, __name__).line
    2
    """
    own = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if _package(frame.f_globals.get("__name__")) in ("__main__", _package(module))]
    if not own:
        return None
    frame, line = own[-1]
    file = frame.f_code.co_filename
    return Place(_cell(frame) or Path(file).name, line, linecache.getline(file, line, frame.f_globals).strip())


def _package(module: object) -> str:
    return str(module).partition(".")[0]


def _cell(frame: FrameType) -> str:
    """The cell that a frame's code stands in, as a traceback of the notebook calls it; empty where it stands in a file."""
    shell = frame.f_globals.get("get_ipython", lambda: None)()
    named = shell.compile.format_code_name(frame.f_code.co_filename) if shell else None
    return " ".join(named) if named else ""
