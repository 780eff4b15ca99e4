"""Error location: the line of an author's cell or module where an error came from."""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from kdkit.errors import describe_exception
from kdkit.guards.error_meanings import known_meaning


@dataclass(frozen=True)
class SourceLine:
    """A line of source code.

    Attributes:
        file: "Cell In[3]", or a module's file name.
        line: its number, from 1.
        code: its text; empty where the source is not available.
    """

    file: str
    line: int
    code: str = ""

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


def find_error_line(error: BaseException, module: str) -> SourceLine | None:
    """The innermost line of a module's package, or of a cell, in an error's traceback; None if there is none.

    >>> try:
    ...     1 / 0
    ... except ZeroDivisionError as error:
    ...     find_error_line(error, __name__).line
    2
    """
    if remembered := getattr(error, _REMEMBERED, None):
        file, line = remembered
        return _source_line(file, line, vars(sys.modules.get("__main__", object)))
    found = _innermost(error, module)
    return _source_line(found[0].f_code.co_filename, found[1], found[0].f_globals) if found else None


def describe_error(error: BaseException, module: str) -> str:
    """An error with the line that `find_error_line` finds: "ValueError: no layers (prune.py, line 3: raise ...)".

    A message of torch whose meaning is known is replaced by that.

    >>> describe_error(ValueError("no layers"), __name__)
    'ValueError: no layers'
    """
    place = find_error_line(error, module)
    return (known_meaning(error) or describe_exception(error)) + (f" ({place}: {place.code})" if place else "")


def remember_error_line(error: BaseException, module: str) -> None:
    """Keep the line that `find_error_line` finds on the error itself, which loses its traceback in another process."""
    if found := _innermost(error, module):
        setattr(error, _REMEMBERED, (found[0].f_code.co_filename, found[1]))


_REMEMBERED = "kdkit_error_line"


def _innermost(error: BaseException, module: str) -> tuple[FrameType, int] | None:
    own = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if _package(frame.f_globals.get("__name__")) in ("__main__", _package(module))]
    return own[-1] if own else None


def _source_line(file: str, line: int, variables: Mapping[str, Any]) -> SourceLine:
    return SourceLine(_cell(file, variables) or Path(file).name, line, linecache.getline(file, line, dict(variables)).strip())


def _package(module: object) -> str:
    return str(module).partition(".")[0]


def _cell(file: str, variables: Mapping[str, Any]) -> str:
    """The notebook's name for the cell that a code file belongs to; empty for other files."""
    shell = variables.get("get_ipython", lambda: None)()
    named = shell.compile.format_code_name(file) if shell else None
    return " ".join(named) if named else ""
