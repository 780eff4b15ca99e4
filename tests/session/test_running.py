"""A trial: stages that run and are measured, and leave no trace in the session."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from kdkit import KdError, Session, Stage, param
from kdkit.errors import Cancelled
from tests.fixtures import zoo


class Noise(Stage):
    """Add noise to the last layer."""

    id: ClassVar = "tune.test-trial-noise"
    scale: float = param(1.0, "factor", gt=0)

    def apply(self, model, context):
        for step in range(3):
            context.progress(step, 3)
        model.head.weight.data.add_(self.scale * torch.randn_like(model.head.weight))
        context.note("noisy")


class Fail(Noise):
    """Spoil the copy, then fail."""

    id: ClassVar = "tune.test-trial-fail"

    def apply(self, model, context):
        super().apply(model, context)
        raise ZeroDivisionError("failed")


@pytest.fixture
def session(offered):
    offered(Noise, Fail)
    batch = zoo.batch("mlp")
    return Session(zoo.mlp(), eval=(batch.args[0], batch.labels), measures=("quality", "parameters"))


def test_a_trial_is_measured_and_not_committed(session):
    before = session.history
    made = session.trial("tune test-trial-noise")
    assert (made.name, made.parent, made.notes) == ("@trial", 0, ("noisy",))
    assert 0 <= made["accuracy"] <= 1
    assert session.history is before
    with pytest.raises(KdError, match="no version @trial"):
        session.version("@trial")


def test_a_run_with_the_same_seed_makes_the_same_model(session):
    tried = session.trial("tune test-trial-noise\ndecompose svd --ratio 0.5", seed=5)
    made = session.run("tune test-trial-noise\ndecompose svd --ratio 0.5", seed=5)
    assert all(torch.equal(one, other) for one, other in zip(tried.model.state_dict().values(), made.model.state_dict().values(), strict=True))
    assert tried["accuracy"] == made["accuracy"]


def test_a_trial_begins_at_the_stated_version(session):
    session.run("tune test-trial-noise --scale 5", label="far")
    base, far = (session.trial("tune test-trial-noise --scale 0.001", on=name) for name in ("@base", "@far"))
    assert (base.parent, far.parent) == (0, 1)
    assert torch.allclose(base.model.head.weight, session["@base"].model.head.weight, atol=0.1)
    assert torch.allclose(far.model.head.weight, session["@far"].model.head.weight, atol=0.1)


def test_trials_differ_by_seed(session):
    one, same, other = (session.trial("tune test-trial-noise", seed=seed).model.head.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_cancellation_between_two_trials_of_an_experiment_stops_the_next(session):
    with session.experiment() as trial:
        trial("tune test-trial-noise")
        session.cancel()
        with pytest.raises(Cancelled):
            trial("tune test-trial-noise")
    assert session.run("tune test-trial-noise").number == 1


def test_nothing_else_runs_during_an_experiment(session):
    with session.experiment(), pytest.raises(KdError, match="a stage is running in this session"):
        session.run("tune test-trial-noise")


def test_a_trial_is_no_version_to_start_from(session):
    tried = session.trial("tune test-trial-noise")
    with pytest.raises(KdError, match="a trial is not kept as a version") as caught:
        session.run("tune test-trial-noise", on=tried)
    assert "run its stages" in caught.value.hints[0]


def test_a_trial_that_fails_or_is_cancelled_leaves_the_session_as_it_was(session):
    before = session.history
    with pytest.raises(KdError, match="failed: ZeroDivisionError"):
        session.trial("tune test-trial-noise\ntune test-trial-fail")
    with pytest.raises(Cancelled):
        session.trial("tune test-trial-noise", observe=lambda progress: session.cancel())
    with pytest.raises(KdError, match="no stage to run"):
        session.trial("")
    assert session.history is before
    assert session.trial("tune test-trial-noise").number == 1


def test_no_stage_runs_beside_a_trial(session):
    refused = []

    def observe(progress):
        with pytest.raises(KdError, match="a stage is running") as caught:
            session.trial("tune test-trial-noise")
        refused.append(caught.value)

    session.trial("tune test-trial-noise", observe=observe)
    assert refused
