"""Pictures of a notebook's outputs."""

from __future__ import annotations

import nbformat
import pytest

pytest.importorskip("playwright", reason="playwright is not installed (pip install -e '.[test]')")

from notebooks.screenshots import pictures

FORM = """\
import ipywidgets
told = ipywidgets.HTML("idle")
start = ipywidgets.Button(description="Start")
start.on_click(lambda _: setattr(told, "value", f"started in {tab.selected_index}"))
tab = ipywidgets.Tab([ipywidgets.HTML("nothing"), ipywidgets.VBox([start, told])], titles=["Model", "Run"])
tab"""


def write(path, *cells):
    made = [nbformat.v4.new_code_cell(source, metadata=metadata) for source, metadata in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}), path)
    return path


def test_outputs_are_pictured_in_both_themes_after_what_is_to_be_pressed(notebook, lab, tmp_path):
    wanted = [{"name": "run", "press": ["Run", "Start"], "until": "started in 1"}]
    path = write(lab.folder / "form.ipynb", ("", {}), (FORM, {"pictures": wanted}))
    before = path.read_text()
    files = list(pictures(notebook, path.name, tmp_path))
    assert [file.name for file in files] == ["run-light.png", "run-dark.png"]
    assert files[0].read_bytes() != files[1].read_bytes()
    assert notebook.ask("told.value") == "'started in 1'"
    assert path.read_text() == before


def test_a_cell_that_fails_ends_it_and_is_named(notebook, lab, tmp_path):
    path = write(lab.folder / "fails.ipynb", ("1 / 0", {"tags": ["raises-exception"]}), ("nowhere", {"pictures": [{"name": "never"}]}))
    with pytest.raises(RuntimeError, match="cell 2 of fails.ipynb failed: NameError"):
        list(pictures(notebook, path.name, tmp_path))
    assert not list(tmp_path.iterdir())
