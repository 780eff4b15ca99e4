"""Interruptions: an error in the midst of a plugin's own work, at a line that is the same every time."""

from __future__ import annotations

import ast
import contextlib
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any


@dataclass
class Lines:
    """The lines of a plugin that ran in this thread.

    Attributes:
        home: the name of its module, or of the package whose modules count.
        count: how many ran.
        stop: raised in place of line `at`; where that cleans up, in place of the next one that does not.
        stopped: whether it was raised.
    """

    home: str
    count: int = 0
    stop: BaseException | None = None
    at: int = 0
    stopped: bool = False

    def __post_init__(self) -> None:
        self._own: dict[CodeType, bool] = {}

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Called by Python for each frame; follows the lines of the plugin's own."""
        own = self._own.get(frame.f_code)
        if own is None:
            own = self._own[frame.f_code] = belongs(str(frame.f_globals.get("__name__", "")), self.home)
        return self._line if own else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.count += 1
            if self.stop is not None and not self.stopped and self.count >= self.at and not cleaning_up(frame):
                self.stopped = True
                raise self.stop
        return self._line


@contextlib.contextmanager
def counted(home: str, stop: BaseException | None = None, at: int = 0) -> Iterator[Lines]:
    """Count the lines of a plugin that run in the block, and raise `stop` in place of line `at`.

    >>> import textwrap
    >>> with counted("textwrap") as lines: _ = textwrap.dedent("a")
    >>> lines.count > 1
    True
    """
    lines, before = Lines(home, stop=stop, at=at), sys.gettrace()
    sys.settrace(lines.trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


def belongs(module: str, home: str) -> bool:
    """Whether a module is `home`, or one of the package of that name.

    >>> belongs("kdkit_mine.parts", "kdkit_mine"), belongs("kdkit_mines", "kdkit_mine")
    (True, False)
    """
    return module == home or module.startswith(f"{home}.")


def cleaning_up(frame: FrameType | None) -> bool:
    """Whether a frame, or one that waits for it, is putting things back: an error there would say nothing about the work."""
    while frame is not None:
        code = frame.f_code
        if code.co_name in ("__exit__", "__del__") or frame.f_lineno in _finally_lines(code.co_filename):
            return True
        frame = frame.f_back
    return False


@functools.cache
def _finally_lines(path: str) -> frozenset[int]:
    """The lines of a file within the `finally` of a `try`."""
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return frozenset()
    ends = [statement for node in ast.walk(tree) if isinstance(node, ast.Try) for statement in node.finalbody]
    return frozenset(line for statement in ends for line in range(statement.lineno, (statement.end_lineno or statement.lineno) + 1))
