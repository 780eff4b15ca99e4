"""The tabs of the wizard, in the usual order of work. To add a tab, add its class here."""

from kdkit.notebook.wizard.tab import Tab
from kdkit.notebook.wizard.tabs.build import BuildTab
from kdkit.notebook.wizard.tabs.export import ExportTab
from kdkit.notebook.wizard.tabs.layers import LayersTab
from kdkit.notebook.wizard.tabs.results import ResultsTab
from kdkit.notebook.wizard.tabs.run import RunTab
from kdkit.notebook.wizard.tabs.start import StartTab

TABS: tuple[type[Tab], ...] = (StartTab, BuildTab, LayersTab, RunTab, ResultsTab, ExportTab)
