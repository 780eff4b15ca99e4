"""Cell runs: a cell that runs again replaces what it offered before."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kdkit.plugins import cell_runs
from kdkit.plugins.cell_runs import CellRun, current_run, on_pre_run_cell


@pytest.fixture(autouse=True)
def first_run(monkeypatch):
    monkeypatch.setattr(cell_runs, "_current", CellRun())


def test_each_run_has_the_cells_id_and_the_next_number():
    on_pre_run_cell(SimpleNamespace(cell_id="a"))
    on_pre_run_cell(SimpleNamespace(cell_id="b"))
    assert current_run() == CellRun("b", 2)


def test_a_run_outside_a_notebook_has_no_cell_and_replaces_nothing():
    on_pre_run_cell(SimpleNamespace())
    earlier = current_run()
    on_pre_run_cell(SimpleNamespace(cell_id=None))
    assert not current_run().replaces(earlier)


def test_a_later_run_of_the_same_cell_replaces_the_earlier_one():
    on_pre_run_cell(SimpleNamespace(cell_id="a"))
    earlier = current_run()
    assert not current_run().replaces(earlier)
    on_pre_run_cell(SimpleNamespace(cell_id="a"))
    assert current_run().replaces(earlier)
