"""Cells: which run of which cell of the notebook goes on now, so that what a cell offers takes the place of what it offered before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Run:
    """One run of a cell.

    Attributes:
        cell: the id that the notebook knows it by; empty where it is no cell, or has none, as in a terminal.
        number: of the run, from 1.
    """

    cell: str = ""
    number: int = 0

    def replaces(self, earlier: Run) -> bool:
        """Whether this is a later run of the same cell.

        >>> Run("a", 2).replaces(Run("a", 1)), Run("a", 2).replaces(Run("b", 1)), Run("", 2).replaces(Run("", 1))
        (True, False, False)
        """
        return bool(self.cell) and self.cell == earlier.cell and self.number != earlier.number


_current = Run()


def current() -> Run:
    """The run that goes on, or the last one."""
    return _current


def begin(info: Any) -> None:
    """Hear from IPython, as its `pre_run_cell`, that a cell begins to run."""
    global _current
    _current = Run(getattr(info, "cell_id", None) or "", _current.number + 1)
