"""A wizard without a browser: controls are set and buttons pressed as a browser would have it."""

from __future__ import annotations

import pytest

from kdkit import notebook
from kdkit.notebook.wizard.window import Wizard


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """What is shown at once because it is quick is shown at once on a busy machine too."""
    monkeypatch.setattr("kdkit.notebook.wizard.panes.pipeline.QUICK_S", 1e9)
    monkeypatch.setattr("kdkit.notebook.wizard.panes.verb_forms.QUICK_S", 1e9)


@pytest.fixture
def wizard(cells):
    """A wizard on the notebook's session; closed afterwards."""
    made = Wizard(notebook.desk_of(cells.shell))
    yield made
    made.close()


@pytest.fixture
def fresh(bare, cells):
    """A wizard in a notebook that has a model and data, and no session yet."""
    desk = notebook.desk_of(bare.shell)
    desk.shared.session = None
    made = Wizard(desk)
    yield made
    made.close()


def press(wizard, button):
    """Press a button that may be pressed, and wait until what it began is over."""
    assert not button.disabled, f"{button.description} can't be pressed"
    button.click()
    wizard.worker.wait(120)


def add(wizard, stage, **values):
    """Choose a technique, say what is not its default, and add it to the pipeline."""
    pane = wizard.pane("Pipeline")
    wizard.open("Pipeline")
    pane.family.value, pane.technique.value = stage.split()
    for name, value in values.items():
        pane.form.control(name).value = value
    press(wizard, pane.add)
