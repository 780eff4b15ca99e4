"""A teacher's most probable classes and a tail: the whole where all are kept, near it where few are, and refused where it can't be."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.stages.context import Context
from kdkit.tasks import CausalLM
from kdkit.training import fit
from kdkit_distill.response.correlation import Correlation
from kdkit_distill.response.decoupled import Decoupled
from kdkit_distill.response.divergences import events as events_of
from kdkit_distill.response.divergences import jensen_shannon, reverse, soft_labels
from kdkit_distill.response.soft import Soft
from kdkit_distill.response.standardized import Standardized
from kdkit_distill.signals import Signal, TopK, first_classes, top_k
from kdkit_distill.teachers.sources import ModelSource, Source
from tests.benchmarks.bench_topk import bytes_of, gradient_error, zipf
from tests.fixtures.lessons import Speller, context, first_loss, logits, net, points, weights, words

DIVERGENCES: dict[str, Callable[..., Tensor]] = {"forward": soft_labels, "reverse": reverse, "jensen-shannon": jensen_shannon}


def events(logits: list[float], kept: list[int], temperature: float) -> list[float]:
    """The shares of the kept classes and of all others together."""
    found = [math.exp(z / temperature) for z in logits]
    found = [each / sum(found) for each in found]
    return [found[index] for index in kept] + [sum(each for index, each in enumerate(found) if index not in kept)]


# The record ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_it_holds_the_log_shares_of_the_greatest_and_of_the_rest(temperature: float) -> None:
    teacher = logits(5, 7)
    kept = top_k(teacher, 3, temperature)
    assert kept.shape == teacher.shape
    for row, values, indices, tail in zip(teacher.tolist(), kept.values, kept.indices.tolist(), kept.tail, strict=True):
        assert [*values.exp().tolist(), tail.exp().item()] == pytest.approx(events(row, indices, temperature), rel=1e-12)
        assert sorted(row, reverse=True)[:3] == [row[index] for index in indices]


def test_more_than_all_classes_are_all_and_nothing_is_left() -> None:
    kept = top_k(logits(5, 7), 99)
    assert kept.values.shape == (5, 7)
    assert (kept.tail == -math.inf).all()


def test_rows_can_be_chosen_and_put_together_again() -> None:
    kept = top_k(logits(6, 4, 9), 3, 2.0)
    some = kept[torch.tensor([4, 1])]
    assert torch.equal(some.values, kept.values[[4, 1]])
    assert torch.equal(some.indices, kept.indices[[4, 1]])
    assert torch.equal(some.tail, kept.tail[[4, 1]])
    assert (some.classes, some.temperature, some.shape, some.to("cpu").shape) == (9, 2.0, (2, 4, 9), (2, 4, 9))


def test_a_tail_that_rounding_would_lose_is_kept() -> None:
    kept = top_k(torch.tensor([[0.0, 40.0, -3.0]]), 1)
    assert kept.tail.item() == pytest.approx(math.log(math.exp(-40) + math.exp(-43)), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_are_computed_in_full(dtype: torch.dtype) -> None:
    assert top_k(torch.tensor([[6e4, 0.0, -6e4]]).to(dtype), 2).values.tolist() == [[0.0, pytest.approx(-6e4, rel=0.01)]]


# The objectives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_forward_is_the_formula_written_out_over_the_kept_classes_and_the_rest(temperature: float) -> None:
    student, teacher = logits(7, 6), logits(7, 6, seed=1)
    kept, expected = top_k(teacher, 2, temperature), []
    for z_s, z_t, indices in zip(student.tolist(), teacher.tolist(), kept.indices.tolist(), strict=True):
        q, p = events(z_s, indices, temperature), events(z_t, indices, temperature)
        expected.append(temperature**2 * sum(b * math.log(b / a) for a, b in zip(q, p, strict=True)))
    assert soft_labels(student, kept, temperature).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_all_classes_kept_are_the_dense_teacher_exactly(name: str) -> None:
    given = [logits(7, 6).requires_grad_() for _ in range(2)]
    teacher = logits(7, 6, seed=1)
    losses = [DIVERGENCES[name](student, answers, 3.0) for student, answers in zip(given, (teacher, top_k(teacher, 6, 3.0)), strict=True)]
    for loss in losses:
        loss.sum().backward()
    assert torch.allclose(*losses, rtol=0, atol=1e-13)
    assert torch.allclose(given[0].grad, given[1].grad, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_it_is_at_most_the_dense_divergence_and_grows_with_k(name: str) -> None:
    student, teacher = logits(9, 12), logits(9, 12, seed=1)
    found = [DIVERGENCES[name](student, top_k(teacher, k), 1.0) for k in range(1, 12)] + [DIVERGENCES[name](student, teacher, 1.0)]
    for less, more in itertools.pairwise(found):
        assert (less <= more + 1e-12).all()
    assert (found[0] >= 0).all()


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("k", [1, 3, 6])
def test_identical_models_give_zero_loss_and_zero_gradient(name: str, k: int) -> None:
    student = logits(4, 6).requires_grad_()
    loss = DIVERGENCES[name](student, top_k(student.detach(), k, 2.0), 2.0)
    loss.sum().backward()
    assert loss.abs().max() < 1e-14
    assert student.grad.abs().max() < 1e-14


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_extreme_logits_give_finite_losses_and_gradients(name: str, dtype: torch.dtype) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 1e4], [-1e4, -1e4, 1e4]]).to(dtype).requires_grad_()
    loss = DIVERGENCES[name](student, top_k(torch.tensor([[-1e4, 1e4, 0.0], [0.0, 0.0, 1e4], [1e4, 0.0, 0.0]]).to(dtype), 2), 1.0)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_classes_that_both_rule_out_leave_the_gradient_finite(name: str) -> None:
    out = torch.tensor([0.0, 0.0, -math.inf, -math.inf], dtype=torch.float64)
    student, teacher = (logits(3, 4) + out).requires_grad_(), logits(3, 4, seed=1) + out
    loss = DIVERGENCES[name](student, top_k(teacher, 2), 1.0)
    loss.sum().backward()
    assert torch.allclose(loss, DIVERGENCES[name](student[:, :2], teacher[:, :2], 1.0))
    assert torch.isfinite(student.grad).all()


def test_what_was_stored_in_half_precision_is_a_distribution_again() -> None:
    kept = top_k(logits(9, 12), 3)
    _, asked = events_of(logits(9, 12, seed=1), replace(kept, values=kept.values.half(), tail=kept.tail.half()), 1.0)
    assert torch.allclose(asked.exp().sum(-1), torch.ones(9, dtype=torch.float64), atol=1e-12)


@pytest.mark.slow
def test_on_a_zipf_tailed_vocabulary_64_classes_give_the_gradient_to_2_percent_in_250_bytes() -> None:
    student, teacher = zipf(rows=64)
    kept = top_k(teacher, 64)
    stored = replace(kept, values=kept.values.half(), tail=kept.tail.half())
    assert kept.values.exp().sum(-1).mean().item() == pytest.approx(0.80, abs=0.02)
    assert gradient_error(student, teacher, stored) <= 0.02
    assert bytes_of(64, kept.classes) <= 250
    assert gradient_error(student, teacher, top_k(teacher, 8)) < 0.1


# The stage -----------------------------------------------------------------------------------------------------------


class Keeping(ModelSource):
    """A teacher whose source keeps the most probable classes only."""

    k, temperature, half = 2, 4.0, False

    def signal(self, batch: Batch) -> Signal:
        found = super().signal(batch)
        kept = top_k(found.logits, self.k, self.temperature)
        return replace(found, logits=replace(kept, indices=kept.indices.to(torch.int32)))


class Kept(Soft):
    """Soft labels from such a source."""

    def source(self, context: Context) -> Source:
        return Keeping(self.teacher, context)


@pytest.mark.slow
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_live_teacher_and_a_source_that_keeps_the_top_k_teach_alike(divergence: str) -> None:
    live, kept = net(0), net(0)
    options: dict[str, Any] = {"divergence": divergence, "epochs": 2, "temperature": 4.0}
    fit(live, [Soft(top_k=2, **options)], context(teacher=net(1)))
    fit(kept, [Kept(**options)], context(teacher=net(1)))
    assert torch.equal(weights(live), weights(kept))
    assert not torch.equal(weights(live), weights(fit(net(0), [Soft(**options)], context(teacher=net(1)))))


def test_the_stages_loss_is_that_of_the_top_k() -> None:
    student, teacher, x = net(0), net(1).eval(), points()[0]
    expected = soft_labels(copy.deepcopy(student).train()(x), top_k(teacher(x), 2, 3.0), 3.0).mean().item()
    found = first_loss(Soft(labels=False, top_k=2, temperature=3.0, steps=1, batch_size=64), student, context(x, teacher))
    assert found["soft"] == pytest.approx(expected, rel=1e-5)


def test_all_classes_kept_train_the_same_student() -> None:
    dense, kept = Speller(0), Speller(0)
    fit(dense, [Soft(epochs=3)], context(words(), Speller(1), CausalLM()))
    fit(kept, [Soft(epochs=3, top_k=11)], context(words(), Speller(1), CausalLM()))
    assert torch.allclose(weights(dense), weights(kept), rtol=0, atol=1e-12)


def test_answers_kept_at_another_temperature_are_refused() -> None:
    with pytest.raises(KdError, match="output has temperature 4, but the technique needs 2") as caught:
        fit(net(0), [Kept(temperature=2.0)], context(teacher=net(1)))
    assert "--temperature 4" in str(caught.value)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_temperature_schedule_is_refused(schedule: str) -> None:
    (problem,) = Soft(top_k=5, temperature_schedule=schedule).check(net(0), context())
    assert "--temperature-schedule" in problem


@pytest.mark.parametrize("divergence", ["mse", "cosine"])
def test_what_compares_all_logits_is_refused(divergence: str) -> None:
    (problem,) = Soft(top_k=5, divergence=divergence).check(net(0), context())
    assert f"--divergence {divergence} compares all logits" in problem


@pytest.mark.slow
@pytest.mark.parametrize("technique", [Soft, Decoupled, Correlation, Standardized])
def test_techniques_that_want_all_classes_say_so(technique: type) -> None:
    class Sparse(technique):  # type: ignore[misc]
        """The technique, and a source that keeps the top k."""

        def source(self, context: Context) -> Source:
            return Keeping(self.teacher, context)

    stage = Sparse(**({"divergence": "mse"} if technique is Soft else {}))
    with pytest.raises(KdError, match="has 2 of 3 classes, but the technique compares all"):
        fit(net(0), [stage], context(teacher=net(1)))


def test_a_teacher_that_answers_nan_is_noticed_in_what_was_kept() -> None:
    teacher = net(1)
    with torch.no_grad():
        teacher[0].weight.fill_(math.nan)
    with pytest.raises(KdError, match="the teacher's output is nan"):
        fit(net(0), [Kept()], context(teacher=teacher))


def test_padding_of_the_wider_head_is_cut_off_what_was_kept() -> None:
    wide = top_k(torch.tensor([[3.0, 2.0, 1.0, -9.0]]), 2)
    cut = first_classes(wide, 3)
    assert isinstance(cut, TopK)
    assert cut.shape == (1, 3)
    with pytest.raises(KdError, match="class 3, but the student has 3 classes"):
        first_classes(top_k(torch.tensor([[3.0, 2.0, 1.0, 9.0]]), 2), 3)


def test_one_class_at_the_least_is_kept() -> None:
    with pytest.raises(KdError, match="--top-k"):
        Soft.build("distill soft", {"top_k": 0})
