"""Schedules: what weight and temperature are at each step of a training, for every technique over logits."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdkit.data import Batch, Data
from kdkit.errors import KdError
from kdkit.tasks import CausalLM, Classification
from kdkit.training import fit
from kdkit_distill.response.correlation import Correlation, inter_class, intra_class
from kdkit_distill.response.decoupled import Decoupled, decoupled
from kdkit_distill.response.divergences import jensen_shannon, reverse, soft_labels, squared
from kdkit_distill.response.soft import Soft
from kdkit_distill.response.standardized import Standardized, soft_standardized
from kdkit_distill.schedules import between, rising
from kdkit_distill.scheme.unlabelled import Unlabelled
from kdkit_distill.technique import DistillStage
from tests.fixtures import zoo
from tests.fixtures.lessons import context, fingerprint, net, points, weights

STEPS = 5
LOSSES: dict[str, tuple[type[DistillStage], dict[str, Any], Callable[..., Tensor]]] = {
    "soft": (Soft, {}, lambda student, teacher, labels, t: soft_labels(student, teacher, t)),
    "soft reverse": (Soft, {"divergence": "reverse"}, lambda student, teacher, labels, t: reverse(student, teacher, t)),
    "soft jensen-shannon": (Soft, {"divergence": "jensen-shannon"}, lambda student, teacher, labels, t: jensen_shannon(student, teacher, t)),
    "soft mse": (Soft, {"divergence": "mse"}, lambda student, teacher, labels, t: squared(student, teacher, t)),
    "unlabelled": (Unlabelled, {}, lambda student, teacher, labels, t: soft_labels(student, teacher, t)),
    "decoupled": (
        Decoupled,
        {"other_weight": 2.0},
        lambda student, teacher, labels, t: sum(f * each for f, each in zip((1, 2), decoupled(student, teacher, labels, t), strict=True)),
    ),
    "correlation": (Correlation, {}, lambda student, teacher, labels, t: inter_class(student, teacher, t) + intra_class(student, teacher, t)),
    "standardized": (Standardized, {"weight": 1.0}, lambda student, teacher, labels, t: soft_standardized(student, teacher, t)),
}


class Same(Data):
    """One batch, again and again: an epoch is the whole training."""

    def batches(self, shuffle: bool = False, seed: int | None = None, batch_size: int | None = None) -> Iterator[Batch]:
        return super().batches(False, 0, None)


def course(name: str, **options: Any) -> tuple[list[float], Callable[[float], float], float, float]:
    """The loss at each step of a training that moves nothing; the technique's loss by temperature; the label loss; alpha."""
    technique, own, objective = LOSSES[name]
    student, teacher, (x, y) = net(0), net(1).eval(), points(16)
    answers = copy.deepcopy(student).train()(x).detach()
    run, seen = context((x, y), teacher), []
    run.objects["train"] = Same(lambda: [Batch((x,), labels=y)] * STEPS, "points", 16 * STEPS)
    run.observe = seen.append
    stage = technique(steps=STEPS, learning_rate=1e-12, optimizer="sgd", **own | options)
    fit(student, [stage], run)
    label = nn.functional.cross_entropy(answers, y).item()
    return [each.figures["loss"] for each in seen][:STEPS], lambda t: objective(answers, teacher(x), y, t).mean().item(), label, stage.share


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("shape", "expected"), [("constant", [6, 6, 6, 6, 6]), ("linear", [6, 5, 4, 3, 2]), ("cosine", [6, 4 + math.sqrt(2), 4, 4 - math.sqrt(2), 2])])
def test_the_temperature_follows_its_schedule(name: str, shape: str, expected: list[float]) -> None:
    losses, objective, label, share = course(name, temperature=6.0, temperature_end=2.0, temperature_schedule=shape)
    assert losses == pytest.approx([(1 - share) * label + share * objective(t) for t in expected], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("shape", "expected"), [("linear", [1, 0.8, 0.6, 0.4, 0.2]), ("cosine", [1, 0.6 + 0.4 * math.sqrt(0.5), 0.6, 0.6 - 0.4 * math.sqrt(0.5), 0.2])])
def test_the_weights_schedule_multiplies_the_base_weight_and_leaves_the_labels(name: str, shape: str, expected: list[float]) -> None:
    losses, objective, label, share = course(name, temperature=3.0, weight=5.0, weight_schedule=shape, weight_end=0.2)
    assert losses == pytest.approx([(1 - share) * label + share * 5 * factor * objective(3.0) for factor in expected], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_a_warm_up_raises_the_weight_from_nothing(name: str) -> None:
    losses, objective, label, share = course(name, temperature=3.0, weight=2.0, weight_warmup=0.5)
    assert losses == pytest.approx([(1 - share) * label + share * 2 * factor * objective(3.0) for factor in (0, 0.5, 1, 1, 1)], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_all_three_together_are_their_product(name: str) -> None:
    options = {"temperature": 6.0, "temperature_end": 2.0, "temperature_schedule": "linear", "weight": 2.0, "weight_schedule": "linear", "weight_warmup": 0.5}
    losses, objective, label, share = course(name, **options)
    factors, temperatures = [0, 0.5 * 0.75, 0.5, 0.25, 0], [6, 5, 4, 3, 2]
    assert losses == pytest.approx([(1 - share) * label + share * 2 * f * objective(t) for f, t in zip(factors, temperatures, strict=True)], rel=1e-4)


def test_all_terms_of_a_technique_follow_the_schedule_and_are_shown_as_they_are() -> None:
    run, seen = context(points(), teacher=net(1)), []
    run.observe = seen.append
    # four batches, the last step in the last of them
    fit(net(0), [Decoupled(steps=4, learning_rate=1e-12, optimizer="sgd", weight_schedule="linear", other_weight="published")], run)
    first, last = seen[0].figures, seen[3].figures
    assert first["loss"] == pytest.approx(0.5 * first["label"] + 0.5 * (first["target"] + 8 * first["other"]), rel=1e-4)
    assert last["target"] > 0
    assert last["loss"] == pytest.approx(0.5 * last["label"], rel=1e-4)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_schedule_begins_and_ends_where_it_says_and_goes_one_way(shape: str) -> None:
    values = [between(shape, 4.0, 1.0, step / 20) for step in range(21)]
    assert (values[0], values[-1]) == (4.0, pytest.approx(1.0))
    assert values == sorted(values, reverse=True)


def test_a_warm_up_ends_at_1_and_stays_there() -> None:
    assert [rising(0.4, each) for each in (0, 0.2, 0.4, 0.7, 1)] == [0, pytest.approx(0.5), 1, 1, 1]


@pytest.mark.parametrize(
    "bad", [{"temperature": 0.0}, {"temperature_end": 0.0}, {"temperature_schedule": "step"}, {"weight": 0.0}, {"weight_warmup": 1.0}, {"weight_end": -0.1}]
)
@pytest.mark.parametrize("technique", [Soft, Decoupled, Correlation, Standardized, Unlabelled])
def test_values_without_meaning_are_refused(technique: type[DistillStage], bad: dict[str, Any]) -> None:
    with pytest.raises(KdError, match=f"--{next(iter(bad)).replace('_', '-')}"):
        technique.build(technique.id, bad)


def test_a_single_step_is_the_end_of_a_schedule() -> None:
    student, teacher, (x, y) = net(0), net(1).eval(), points(16)
    expected = soft_labels(copy.deepcopy(student).train()(x), teacher(x), 2.0).mean().item()
    run, seen = context((x, y), teacher, Classification()), []
    run.observe = seen.append
    fit(student, [Soft(labels=False, steps=1, temperature_schedule="linear", temperature_end=2.0)], run)
    assert seen[0].figures["soft"] == pytest.approx(expected, rel=1e-5)
    assert torch.isfinite(torch.tensor(seen[0].figures["loss"]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), [*((name, "cnn") for name in LOSSES), ("decoupled", "tiny_gpt2"), ("soft", "lstm")])
def test_every_technique_trains_the_zoo_and_leaves_the_teacher_to_the_bit(name: str, model: str) -> None:
    technique, own, _ = LOSSES[name]
    student, teacher, batch = zoo.MODELS[model](), zoo.MODELS[model](), zoo.batch(model)
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    before, keys, start = fingerprint(teacher), list(student.state_dict()), weights(student)
    task, seen = CausalLM() if model == "tiny_gpt2" else Classification(), []
    run = context(Data(lambda: [batch], "the zoo's", batch.size), teacher, task)
    run.observe = seen.append
    fit(student, [technique(epochs=6, learning_rate=0.01, **own)], run)
    assert fingerprint(teacher) == before
    assert list(student.state_dict()) == keys
    assert not torch.equal(weights(student), start)
    assert seen[-1].figures["loss"] < seen[0].figures["loss"]
