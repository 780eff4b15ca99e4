"""What all tests of measurement share."""

import pytest


@pytest.fixture(autouse=True)
def numbers_are_shown(monkeypatch):
    """Figures appear as numbers, not as the placeholder of stable text."""
    monkeypatch.delenv("KDKIT_STABLE", raising=False)
