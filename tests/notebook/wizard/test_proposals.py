"""Proposals: pipelines that follow from what stages declare and predict."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from kdkit import Forecast, Session, Stage, Trait, param
from kdkit.errors import KdError
from kdkit.notebook.wizard.proposals import propose
from kdkit.plugins.manager import manager


@pytest.fixture
def session():
    torch.manual_seed(0)
    data = (torch.randn(32, 8), torch.arange(32) % 4)
    return Session(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), train=data, eval=data, measures=("size",))


class Vanish(Stage):
    """Leave one unit."""

    id: ClassVar = "prune.test-vanish"
    units: int = param(1, "that stay", ge=1)

    def forecast(self, model: nn.Module, context: Any) -> Forecast:
        return Forecast(nn.Sequential(nn.Linear(8, self.units), nn.Linear(self.units, 4)))

    def apply(self, model: nn.Module, context: Any) -> nn.Module:
        return self.forecast(model, context).model


class Crumble(Vanish):
    """A stage that nothing may follow."""

    id: ClassVar = "prune.test-crumble"
    removes: ClassVar = frozenset({Trait.TRAINABLE, Trait.FLOAT_WEIGHTS, Trait.FREE_STRUCTURE})

    def forecast(self, model: nn.Module, context: Any) -> Forecast:
        return Forecast(nn.Sequential(nn.Linear(8, 1, bias=False), nn.Linear(1, 4, bias=False)))


@pytest.mark.slow
def test_every_proposal_can_run_in_its_order_and_predicts_what_its_plan_does(session):
    proposals = propose(session)
    assert [each.goal for each in proposals] == ["smaller", "faster", "least risk"]
    for each in proposals:
        assert not [found for found in session.validate_order("\n".join(each.steps)) if isinstance(found, KdError)]
        assert each.plan.steps[-1].size_bytes < each.plan.steps[0].size_bytes
    assert len(session.versions) == 1


@pytest.mark.slow
def test_what_is_removed_is_followed_by_a_training_and_the_least_risk_removes_nothing(session):
    proposals = {each.goal: each for each in propose(session)}
    families = [step.split()[0] for step in proposals["smaller"].steps]
    assert families == ["prune", "decompose", "distill", "quantize"]
    assert "--epochs 3" in proposals["smaller"].steps[2]
    assert len(proposals["faster"].steps) == 3
    assert proposals["smaller"].risk.startswith("medium")
    assert proposals["least risk"].risk == "low: no weight is removed; the weights are rounded"
    assert proposals["least risk"].plan.steps[-1].parameters >= 0.9 * proposals["least risk"].plan.steps[0].parameters


@pytest.mark.slow
def test_the_smallest_forecast_wins_also_where_it_is_a_plugins(session, offered):
    offered(Vanish)
    assert next(each for each in propose(session) if each.goal == "smaller").steps[0] == "prune test-vanish"


@pytest.mark.slow
def test_a_forecast_that_fails_proposes_nothing(session, offered):
    offered(
        type(
            "Wrong",
            (Vanish,),
            {"__module__": __name__, "__doc__": "It has another input.", "id": "prune.test-wrong", "forecast": lambda *given: Forecast(nn.Linear(1, 1))},
        )
    )
    assert not any("test-wrong" in step for each in propose(session) for step in each.steps)


@pytest.mark.slow
def test_a_removal_that_no_training_can_follow_is_a_high_risk(session, offered):
    offered(Crumble)
    smaller = next(each for each in propose(session) if each.goal == "smaller")
    assert smaller.steps[0] == "prune test-crumble"
    assert smaller.risk.startswith("high")
    assert "no training follows" in smaller.risk


def test_a_model_that_nothing_makes_smaller_has_no_proposal(monkeypatch, session):
    monkeypatch.setattr(type(manager()), "stages", lambda self: {})
    assert propose(session) == []
