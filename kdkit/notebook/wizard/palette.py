"""The palette: the techniques that can be added, by family or by what is searched for, each with a sentence and whether it fits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from html import escape
from typing import Any

import ipywidgets as widgets

from kdkit.forms.widgets import write
from kdkit.notebook.help_pages import families
from kdkit.parameters.settings import describe
from kdkit.plugins.manager import manager
from kdkit.stages.stage import Stage


class Palette:
    """Techniques to choose from.

    Args:
        choose: called with the chosen technique.
        mark: whether a technique fits, as HTML.
        button: makes a button: (text, help, what it does).

    Attributes:
        box: the widget.
        search: the search field; the list of families counts while it is empty.
        family: the list of families.
    """

    def __init__(self, choose: Callable[[type[Stage]], None], mark: Callable[[type[Stage]], str], button: Callable[[str, str, Callable[[], None]], Any]):
        self._choose, self._mark, self._button = choose, mark, button
        self._rows: dict[str, tuple[Any, Any, Any]] = {}
        style, layout = {"description_width": "5em"}, {"width": "27em"}
        self.search = widgets.Text(description="search", placeholder="a word, or a name: KD, QAT, LoRA", style=style, layout=layout)
        self.family = widgets.Dropdown(description="family", options=families(), style=style, layout=layout)
        self._found = widgets.HTML()
        self._list = widgets.VBox()
        self._list.add_class("kdkit-palette")
        self.search.observe(self.refresh, "value")
        self.family.observe(self.refresh, "value")
        self.box = widgets.VBox([widgets.HBox([self.search, self.family], layout={"flex_flow": "row wrap"}), self._found, self._list])

    @property
    def shown(self) -> list[type[Stage]]:
        """The techniques that are listed."""
        words = self.search.value.lower().split()
        stages = manager().stages().values()
        if not words:
            return [stage for stage in stages if stage.id.startswith(f"{self.family.value}.")]
        return [stage for stage in stages if all(word in _searchable(stage) for word in words)]

    def refresh(self, change: Any = None) -> None:
        """List the techniques as they are now, with their marks; the family stays if it is still there."""
        chosen, found = self.family.value, tuple(families())
        if self.family.options != found:
            self.family.options = found
            self.family.value = chosen if chosen in found else next(iter(found), None)
        rows = []
        for stage in self.shown:
            row, _, text = self._row(stage)
            write(text, f"{escape(describe(stage))} <small>{self._mark(stage)}</small>")
            rows.append(row)
        if self._list.children != tuple(rows):
            self._list.children = rows
        write(self._found, "" if rows else "<p>No technique has these words in its name, its sentence or its other names.</p>")

    def _row(self, stage: type[Stage]) -> tuple[Any, Any, Any]:
        if stage.id not in self._rows:
            button = self._button(stage.id.replace(".", " ", 1), "set its options", partial(self._choose_by_id, stage.id))
            text = widgets.HTML(layout={"flex": "1 1 20em"})
            self._rows[stage.id] = widgets.HBox([button, text]), button, text
        return self._rows[stage.id]

    def _choose_by_id(self, id: str) -> None:
        """A cell that runs again brings another class of the same id."""
        self._choose(manager().stage(id))

    def focus(self) -> None:
        """Move the focus to the search field."""
        self.search.focus()

    def unseen(self) -> list[Any]:
        """Rows that are not listed at the moment, too."""
        return [row for row, _, _ in self._rows.values()]


def _searchable(stage: type[Stage]) -> str:
    return " ".join([stage.id, describe(stage), *stage.other_names()]).lower()
