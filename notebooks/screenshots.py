"""Pictures for the README: what cells of a notebook show in a real JupyterLab, on a light and on a dark page.

    python -m notebooks.screenshots notebooks/wizard.ipynb pictures

The notebook is run from top to bottom, and stays as it is on disk. A cell says in its metadata which pictures are to be taken of its output:

    "pictures": [{"name": "wizard-model"},
                 {"name": "wizard-run", "press": ["Run", "Start"], "until": "done"}]

`press` names tabs and buttons of the output that are pressed first, in turn; `until` is a text that is waited for after that; `part` is the CSS selector of
what is to be seen of the output, where that is not the whole. A name gives the files `NAME-light.png` and `NAME-dark.png`, which the README shows to
readers of either kind:

    <picture>
      <source media="(prefers-color-scheme: dark)" srcset="pictures/wizard-run-dark.png">
      <img alt="what is to be seen there" src="pictures/wizard-run-light.png">
    </picture>
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from PIL import Image

from notebooks.lab import PATIENCE, THEMES, Cell, Notebook, chromium, serve

SIZE = {"width": 1000, "height": 2400}
"""Of the page, in pixels of a screen; high enough that no output is cut off."""
SCALE = 1.5
"""Pixels of a picture for one of the screen's."""
COLOURS = 64
"""Of a picture; a page of text has few, and the file is a third as large."""
STYLE = """
.jp-OutputArea-prompt, .jp-OutputArea-promptOverlay { display: none !important; }
.jp-Cell-outputArea { padding: 12px; }
"""
"""Of a picture: a margin in place of the cell's number."""


def photograph(source: Path, folder: Path) -> list[Path]:
    """Run the notebook `source` in a Lab of its own and take its pictures into `folder`; give the files."""
    with serve(source.parent.resolve()) as lab, chromium() as browser:
        notebook = Notebook(browser.new_page(viewport=SIZE, device_scale_factor=SCALE), lab)
        return list(pictures(notebook, source.name, folder))


def pictures(notebook: Notebook, name: str, folder: Path) -> Iterator[Path]:
    """The same of a notebook `name` of a running Lab."""
    folder.mkdir(parents=True, exist_ok=True)
    notebook.open(name)
    notebook.command("application:toggle-left-area")
    for index, content in enumerate(nbformat.read(notebook.lab.folder / name, as_version=4).cells):
        if content.cell_type != "code" or not content.source.strip():
            continue
        cell = notebook.cell(index)
        cell.activate()
        cell.start()
        cell.wait()
        if cell.error() and "raises-exception" not in content.metadata.get("tags", ()):
            raise RuntimeError(f"cell {index + 1} of {name} failed: {cell.error()}")
        for wanted in content.metadata.get("pictures", ()):
            yield from picture(cell, wanted, folder)


def picture(cell: Cell, wanted: dict[str, Any], folder: Path) -> Iterator[Path]:
    """Take one picture of a cell's output, in both themes."""
    for name in wanted.get("press", ()):
        cell.output.get_by_role("tab", name=name, exact=True).or_(cell.output.get_by_role("button", name=name, exact=True)).click()
    if "until" in wanted:
        cell.output.get_by_text(wanted["until"]).first.wait_for(timeout=1000 * PATIENCE)
    # what the mouse is over looks different
    cell.notebook.page.mouse.move(0, 0)
    for theme in THEMES:
        cell.notebook.theme(theme)
        file = folder / f"{wanted['name']}-{theme}.png"
        shown = cell.output.locator(wanted["part"]).first if "part" in wanted else cell.output
        shown.screenshot(path=file, animations="disabled", style=STYLE)
        with Image.open(file) as taken:
            taken.convert("RGB").quantize(COLOURS).save(file, optimize=True)
        yield file


if __name__ == "__main__":
    for file in photograph(Path(sys.argv[1]), Path(sys.argv[2])):
        print(file)
