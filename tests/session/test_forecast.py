"""Forecasts: what is predicted again when a pipeline changes, and what is not."""

from __future__ import annotations

import gc
import weakref
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from kdkit import Forecast, Session, Stage, param

predicted: list[float] = []


class Narrow(Stage):
    """Keep the first units."""

    id: ClassVar = "prune.test-narrow"
    share: float = param(0.5, "of the units", gt=0, lt=1)

    def forecast(self, model: nn.Module, context: Any) -> Forecast:
        predicted.append(self.share)
        return Forecast(nn.Linear(model.in_features, int(model.out_features * self.share)))

    def apply(self, model: nn.Module, context: Any) -> nn.Module:
        return nn.Linear(model.in_features, int(model.out_features * self.share))


@pytest.fixture
def session(offered):
    offered(Narrow)
    predicted.clear()
    return Session(nn.Linear(4, 64), example=torch.zeros(1, 4), measures=("size",))


def sizes(plan):
    return [step.parameters for step in plan.steps]


def test_steps_before_the_changed_one_are_not_predicted_again(session):
    first = sizes(session.plan([Narrow(share=0.5), Narrow(share=0.25)]))
    second = sizes(session.plan([Narrow(share=0.5), Narrow(share=0.75)]))
    assert predicted == [0.5, 0.25, 0.75]
    assert first == [5 * 64, 5 * 32, 5 * 8]
    assert second == [5 * 64, 5 * 32, 5 * 24]


def test_steps_after_the_changed_one_are_predicted_again(session):
    session.plan([Narrow(share=0.5), Narrow(share=0.25)])
    assert sizes(session.plan([Narrow(share=0.75), Narrow(share=0.25)])) == [5 * 64, 5 * 48, 5 * 12]
    assert predicted == [0.5, 0.25, 0.75, 0.25]


def test_a_pipeline_that_became_shorter_has_the_same_figures(session):
    long = sizes(session.plan([Narrow(share=0.5), Narrow(share=0.25)]))
    assert sizes(session.plan([Narrow(share=0.5)])) == long[:2]


def test_other_data_are_predicted_again(session):
    session.plan([Narrow(share=0.5)])
    session.set(example=torch.zeros(2, 4))
    session.plan([Narrow(share=0.5)])
    assert predicted == [0.5, 0.5]


def test_what_is_kept_of_a_prediction_keeps_no_session_alive(offered):
    offered(Narrow)
    session = Session(nn.Linear(4, 64), example=torch.zeros(1, 4), measures=("size",))
    session.plan([Narrow()])
    kept = weakref.ref(session.history.model_of(session.head))
    del session
    gc.collect()
    assert kept() is None
