"""The README: what it says is there is there, and the reverse."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdkit.plugins.manager import manager

README = (Path(__file__).parents[1] / "README.md").read_text()


def rows() -> dict[str, str]:
    """The README's row of each family."""
    found = [line.split("|") for line in README.splitlines() if line.startswith("| `") and line.count("|") == 4]
    return {cells[1].strip(" `"): cells[2] for cells in found}


@pytest.mark.parametrize("technique", [name for name, stage in manager().stages().items() if stage.__module__.startswith("kdkit_")])
def test_every_technique_is_in_its_familys_row(technique: str) -> None:
    family, _, name = technique.partition(".")
    assert f"`{name}`" in rows()[family]


@pytest.mark.parametrize("target", sorted(set(re.findall(r'(?:src|srcset)="([^"]+)"|\]\((?!https?:)([^)#]+)\)', README)), key=str))
def test_every_picture_and_file_that_is_linked_is_there(target: tuple[str, str]) -> None:
    assert (Path(__file__).parents[1] / "".join(target)).exists()


def test_the_gallery_shows_every_notebook() -> None:
    gallery = README.split("\n## Notebooks\n")[1].split("\n## ")[0]
    notebooks = (Path(__file__).parents[1] / "notebooks").glob("*.ipynb")
    assert sorted(re.findall(r"\(notebooks/(\w+)\.ipynb\)", gallery)) == sorted(path.stem for path in notebooks)


def test_pictures_are_small() -> None:
    assert all(picture.stat().st_size < 150_000 for picture in (Path(__file__).parents[1] / "notebooks" / "pictures").glob("*.png"))
