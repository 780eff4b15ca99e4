"""The panes of a wizard, in the order in which a session goes; the next one is a class here, and nothing else."""

from kdkit.notebook.wizard.pane import Pane
from kdkit.notebook.wizard.panes.compare import ComparePane
from kdkit.notebook.wizard.panes.data import DataPane
from kdkit.notebook.wizard.panes.export import ExportPane
from kdkit.notebook.wizard.panes.model import ModelPane
from kdkit.notebook.wizard.panes.pipeline import PipelinePane
from kdkit.notebook.wizard.panes.run import RunPane

PANES: tuple[type[Pane], ...] = (ModelPane, DataPane, PipelinePane, RunPane, ComparePane, ExportPane)
