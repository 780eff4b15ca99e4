"""Export: a version to take along, as a folder, a file for other programs, or the lines that make it again."""

from __future__ import annotations

from typing import Any

from kdkit.notebook.page import Source
from kdkit.notebook.wizard.panes.verb_forms import VerbForms
from kdkit.notebook.wizard.snippets import code


class ExportPane(VerbForms):
    """What can be written of a version."""

    title = "Export"
    press, noun = "Write", "as"

    def show(self, word: str, made: Any) -> None:
        if isinstance(made, Source):
            self.result.value = code(made)
        else:
            super().show(word, made)
