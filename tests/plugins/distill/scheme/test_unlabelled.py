"""distill unlabelled: soft labels and nothing else, on data without labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdkit import Session
from kdkit.errors import KdError
from kdkit.stages.stage import Needs
from kdkit.tasks import CausalLM, Embedding
from kdkit.training import fit
from kdkit_distill.response.soft import Soft
from kdkit_distill.scheme.unlabelled import Unlabelled
from tests.fixtures.lessons import Speller, context, fingerprint, first_loss, net, points, weights, words


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "divergence": "reverse"}, {"top_k": 2}])
def test_it_is_soft_without_labels(options: dict[str, Any]) -> None:
    named, spelled = net(0), net(0)
    fit(named, [Unlabelled(epochs=2, **options)], context(points()[0], net(1)))
    fit(spelled, [Soft(labels=False, epochs=2, **options)], context(points()[0], net(1)))
    assert torch.equal(weights(named), weights(spelled))


def test_labels_are_neither_wanted_nor_used() -> None:
    (x, y), plain, labelled = points(), net(0), net(0)
    fit(plain, [Unlabelled()], context(x, net(1)))
    fit(labelled, [Unlabelled()], context((x, y), net(1)))
    assert torch.equal(weights(plain), weights(labelled))
    assert Unlabelled().required_inputs() == Needs(train=True, teacher=True)
    assert set(first_loss(Unlabelled(steps=1), net(0), context((x, y), net(1)))) >= {"soft", "loss"}
    assert "label" not in first_loss(Unlabelled(steps=1), net(0), context((x, y), net(1)))


@pytest.mark.parametrize("option", ["alpha", "labels"])
def test_what_it_can_not_weigh_is_no_option_of_it(option: str) -> None:
    assert option not in Unlabelled.model_fields
    assert option in Soft.model_fields
    with pytest.raises(KdError, match=f"distill unlabelled has no option --{option}"):
        Unlabelled.build("distill unlabelled", {option: 0})


@pytest.mark.slow
def test_it_is_a_line_of_the_session_and_its_line_is_read_back() -> None:
    student, teacher, x = net(0), net(1).eval(), points(256)[0]
    before = fingerprint(teacher)
    session = Session(student, train=x, teacher=teacher, task="classification", measures=())
    session.run("distill unlabelled --temperature 2 --epochs 20 --learning-rate 0.02")
    assert fingerprint(teacher) == before
    assert set(session.head.stage.line().split(" --")) == {"distill unlabelled", "temperature 2", "epochs 20", "learning-rate 0.02"}
    assert (session.head.model(x).argmax(1) == teacher(x).argmax(1)).float().mean() > 0.9


def test_vectors_and_language_models_are_taught_too() -> None:
    x = points()[0]
    figures = first_loss(Unlabelled(divergence="cosine", steps=1), net(0), context(x, net(1), Embedding()))
    assert figures["soft"] == pytest.approx(figures["loss"])
    plain, padded = Speller(0), Speller(0)
    for model, data in ((plain, words()), (padded, words(3))):
        fit(model, [Unlabelled()], context(data, Speller(1), CausalLM()))
    assert torch.allclose(weights(plain), weights(padded), rtol=0, atol=1e-9)
