"""Export: a version as a folder, as a file for other programs, or as the lines that make it."""

from __future__ import annotations

from typing import Any, ClassVar

from kdkit.display.page import Source
from kdkit.notebook.wizard.html import code
from kdkit.notebook.wizard.tabs.verb_forms import VerbForms


class ExportTab(VerbForms):
    """The ways to write a version."""

    title = "Export"
    group: ClassVar = "Export"
    press, noun = "Write", "as"

    def show(self, word: str, made: Any) -> None:
        if isinstance(made, Source):
            self.result.value = code(made)
        else:
            super().show(word, made)
