"""A plugin's view can't change the versions that it shows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import kdkit
from kdkit import View
from kdkit.display import Table


@pytest.fixture
def session() -> kdkit.Session:
    torch.manual_seed(0)
    made = kdkit.Session(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), example=torch.zeros(1, 8), measures=("parameters",))
    made.run("decompose svd --ratio 0.5", label="thin")
    return made


def zeroed(session: Any) -> list[nn.Module]:
    models = [session.original, *(version.model for version in session.versions), session.head.model, session.version("@base").model]
    for model in models:
        model.train()
        for weight in model.parameters():
            weight.data.zero_()
    return models


class Destroys(View):
    """Sets every weight that it can reach to zero, and moves the head."""

    def of(self, session):
        seen = zeroed(session)
        session.undo()
        session.keep("@head", "mine")
        return Table(["parameters"], [[sum(weight.numel() for weight in model.parameters())] for model in seen])


class Asks(View):
    """Uses the versions in each way that a view may."""

    def of(self, session):
        thin = session.version("@thin")
        assert session.version(thin) is thin
        assert thin.model is session.history.model_of(thin)
        assert session.evaluate(thin)["parameters"].value == thin["parameters"]
        return session.compare("@base", thin)


def test_what_a_view_does_to_models_and_history_is_lost(session):
    weights = [weight.clone() for version in session.versions for weight in version.model.parameters()]
    original, history = [weight.clone() for weight in session.original.parameters()], session.history
    session.show(Destroys())
    assert session.history is history
    assert all(torch.equal(*pair) for pair in zip(weights, (weight for version in session.versions for weight in version.model.parameters()), strict=True))
    assert all(torch.equal(*pair) for pair in zip(original, session.original.parameters(), strict=True))
    assert not any(version.model.training for version in session.versions)


def test_a_view_finds_evaluates_and_compares_versions(session):
    assert repr(session.show(Asks())) == repr(session.compare("@base", "@thin"))


def test_a_dropped_version_has_no_model_in_a_view_either(session):
    session.run("decompose svd --ratio 0.5", on="@base")
    session.run("decompose svd --ratio 0.9", on="@thin", label="thinner")
    session.drop("@thin")

    class Models(View):
        """Whether each version has a model."""

        def of(self, session):
            return Table(["model"], [[version.model is not None] for version in session.versions])

    assert session.show(Models()).rows == [[version.model is not None] for version in session.versions]
