"""A wizard worked from Python by what stands on it."""

from __future__ import annotations

import pytest

from kdkit.errors import KdError
from kdkit.notebook.wizard.driver import Driver


@pytest.fixture
def hand(wizard):
    return Driver(wizard)


@pytest.mark.slow
def test_what_a_person_reads_is_what_code_says(hand):
    hand.open("Build")
    hand.set("search", "soft")
    hand.press("distill soft")
    hand.set("teacher", "big")
    hand.press("All options")
    hand.set("steps", 2)
    hand.press("Add step")
    assert hand.lines == "%kd distill soft --steps 2 --teacher {big}"
    hand.open("Run")
    hand.press("Run")
    assert hand.message.startswith("running the pipeline: done")
    assert hand.wizard.controller.session.head.made_by == "distill soft --steps 2 --teacher big"


@pytest.mark.slow
def test_what_went_wrong_is_reported_as_text(hand):
    hand.open("Build")
    for family, technique in (("prune", "channels"), ("tune", "finetune")):
        if family == "tune":
            hand.press("Add a step")
        hand.set("family", family)
        hand.press(f"{family} {technique}")
        hand.press("Add step")
    hand.press("Join 2")
    assert hand.message.startswith("prune channels does not train, so it can't share a loop\n  hint: only stages that train")


def test_nothing_is_reached_that_is_not_seen(hand):
    with pytest.raises(KdError, match="no tab 'Buil'\n.*did you mean Build"):
        hand.open("Buil")
    hand.open("Build")
    with pytest.raises(KdError, match="shows no button 'Change step'"):
        hand.press("Change step")
    with pytest.raises(KdError, match="family offers no 'prume'\n.*did you mean prune"):
        hand.set("family", "prume")
    hand.set("family", "prune")
    hand.press("prune channels")
    with pytest.raises(KdError, match="shows no control 'ratios'\n.*did you mean ratio"):
        hand.set("ratios", 0.5)
    hand.open("Run")
    with pytest.raises(KdError, match="Run is disabled"):
        hand.press("Run")
