"""Cell runs: which run of which notebook cell is current, so that a cell's new stages replace those of its earlier run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CellRun:
    """One run of a cell.

    Attributes:
        cell: the notebook's id of the cell; empty outside a notebook, as in a terminal.
        number: of the run, from 1.
    """

    cell: str = ""
    number: int = 0

    def replaces(self, earlier: CellRun) -> bool:
        """Whether this is a later run of the same cell.

        >>> CellRun("a", 2).replaces(CellRun("a", 1)), CellRun("a", 2).replaces(CellRun("b", 1)), CellRun("", 2).replaces(CellRun("", 1))
        (True, False, False)
        """
        return bool(self.cell) and self.cell == earlier.cell and self.number != earlier.number


_current = CellRun()


def current_run() -> CellRun:
    """The run in progress, or the last one."""
    return _current


def on_pre_run_cell(info: Any) -> None:
    """The callback for IPython's `pre_run_cell` event."""
    global _current
    _current = CellRun(getattr(info, "cell_id", None) or "", _current.number + 1)
