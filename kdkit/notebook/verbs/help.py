"""Verbs that explain: list, help, doctor, wizard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from kdkit.display.table import Table
from kdkit.notebook.doctor import examine
from kdkit.notebook.help_pages import about, techniques
from kdkit.notebook.verb import Verb
from kdkit.notebook.wizard.launch import open_wizard
from kdkit.parameters.settings import param

if TYPE_CHECKING:
    from kdkit.notebook.workspace import Workspace


class List(Verb):
    """List the techniques of all families or of one: what they do, their names in papers, what they need, which plugin provides them."""

    positional: ClassVar = ("family",)
    example_line: ClassVar = "%kd list prune"

    family: str | None = param(None, "such as prune, or a name of a technique in papers, such as RKD", names="family")

    def run(self, workspace: Workspace) -> Table:
        return techniques(self.family)


class Help(Verb):
    """Explain a verb, a family or a technique."""

    positional: ClassVar = ("topic",)
    example_line: ClassVar = "%kd help prune channels"

    topic: tuple[str, ...] = param((), "a verb, a family, or a family and a technique", names="topic")

    def run(self, workspace: Workspace) -> Any:
        return about(self.topic)


class Doctor(Verb):
    """Show installed packages, features of this machine, problems, and how to fix them."""

    example_line: ClassVar = "%kd doctor"

    def run(self, workspace: Workspace) -> Any:
        return examine(workspace.shell)


class Wizard(Verb):
    """Build, run, watch, compare and export a pipeline with forms; the equivalent lines are always shown."""

    positional: ClassVar = ("family", "technique")
    example_line: ClassVar = "%kd wizard prune channels"

    family: str | None = param(None, "family to select first, such as prune", names="family")
    technique: str | None = param(None, "technique whose form to show first, such as channels")
    from_: str | None = param(None, 'initial pipeline: a line, such as "prune channels --ratio 0.5", or a version whose steps to copy')

    def run(self, workspace: Workspace) -> Any:
        return open_wizard(workspace, ".".join(filter(None, [self.family, self.technique])), self.from_ or "")
