"""The plugin of the notebook: the stages that its cells offer."""

from __future__ import annotations

from kdkit.plugins.cell_runs import CellRun, current_run
from kdkit.plugins.hookspecs import hookimpl
from kdkit.stages.stage import Stage


class Notebook:
    """The stages that cells of this notebook offer; running a cell again replaces its own.

    Attributes:
        stages: by id.
        instead: id of a stage that is no longer offered -> id of the stage that its cell offers now.
    """

    def __init__(self) -> None:
        self.stages: dict[str, type[Stage]] = {}
        self.instead: dict[str, str] = {}
        self._runs: dict[str, CellRun] = {}

    @hookimpl
    def kdkit_stages(self) -> list[type[Stage]]:
        return list(self.stages.values())

    def put(self, stage: type[Stage]) -> None:
        """Add a stage, and remove those that an earlier run of its cell offered: the stage may have been renamed."""
        run = current_run()
        for id in [id for id, earlier in self._runs.items() if run.replaces(earlier) and id != stage.id]:
            del self._runs[id]
            self.instead[id] = stage.id
            self.stages.pop(id, None)
        self.stages[stage.id] = stage
        self.instead.pop(stage.id, None)
        if stage.__module__ == "__main__":  # a module that the cell imports does not run again with the cell
            self._runs[stage.id] = run
