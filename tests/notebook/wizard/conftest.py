"""Tests of the wizard do not depend on how fast the machine is."""

import pytest


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """What is shown at once because it is quick is shown at once on a busy machine too."""
    monkeypatch.setattr("kdkit.notebook.wizard.tabs.build.QUICK_S", 1e9)
    monkeypatch.setattr("kdkit.notebook.wizard.tabs.verb_forms.QUICK_S", 1e9)
