"""distill soft: the objective against its formula, the teacher untouched, labels or none."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdkit.errors import Cancelled, KdError
from kdkit.stages.stage import Needs
from kdkit.tasks import CausalLM, Embedding, MultiLabel, Regression, Task
from kdkit.training import fit
from kdkit_distill.response.divergences import cosine_distance, jensen_shannon, kullback_leibler, reverse, soft_labels, squared
from kdkit_distill.response.soft import Soft
from kdkit_tune.finetune import Finetune
from tests.fixtures.interruption import interrupted, moments
from tests.fixtures.lessons import Speller, cnn, context, digit_images, fingerprint, first_loss, logits, net, points, weights, words


def written_out(student: Tensor, teacher: Tensor, temperature: float) -> list[float]:
    """The formula as it stands in the paper, a number at a time."""
    found = []
    for z_s, z_t in zip(student.tolist(), teacher.tolist(), strict=True):
        q = [math.exp(z / temperature) for z in z_s]
        p = [math.exp(z / temperature) for z in z_t]
        q, p = [each / sum(q) for each in q], [each / sum(p) for each in p]
        found.append(temperature**2 * sum(b * math.log(b / a) for a, b in zip(q, p, strict=True)))
    return found


# The objective -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_it_is_the_formula_written_out(temperature: float) -> None:
    student, teacher = logits(7, 5), logits(7, 5, seed=1)
    assert soft_labels(student, teacher, temperature).tolist() == pytest.approx(written_out(student, teacher, temperature), rel=1e-6)


def test_its_mean_is_temperature_squared_times_torchs_batchmean() -> None:
    student, teacher = logits(7, 5), logits(7, 5, seed=1)
    reference = 9 * nn.functional.kl_div((student / 3).log_softmax(-1), (teacher / 3).softmax(-1), reduction="batchmean")
    assert soft_labels(student, teacher, 3.0).mean().item() == pytest.approx(reference.item(), rel=1e-12)


def test_classes_are_the_last_dimension_also_with_tokens() -> None:
    student, teacher = logits(2, 3, 5), logits(2, 3, 5, seed=1)
    assert torch.equal(soft_labels(student, teacher, 2.0).flatten(), soft_labels(student.flatten(0, 1), teacher.flatten(0, 1), 2.0))


def test_at_great_temperature_it_is_half_the_squared_distance_of_centred_logits_a_class() -> None:
    student, teacher = logits(4, 6), logits(4, 6, seed=1)
    centred = [each - each.mean(-1, keepdim=True) for each in (student, teacher)]
    limit = (centred[0] - centred[1]).square().mean(-1) / 2
    assert torch.allclose(soft_labels(student, teacher, 1e4), limit, rtol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_its_gradient_is_temperature_times_the_difference_of_the_shares(temperature: float) -> None:
    student, teacher = logits(4, 6).requires_grad_(), logits(4, 6, seed=1)
    soft_labels(student, teacher, temperature).sum().backward()
    expected = temperature * ((student / temperature).softmax(-1) - (teacher / temperature).softmax(-1))
    assert torch.allclose(student.grad, expected.detach(), atol=1e-12)


def test_identical_models_give_zero_loss_and_zero_gradient() -> None:
    student = logits(4, 6).requires_grad_()
    loss = soft_labels(student, student.detach().clone(), 4.0)
    loss.sum().backward()
    assert torch.equal(loss, torch.zeros_like(loss))
    assert student.grad.abs().max() < 1e-12


@given(st.integers(0, 1000), st.floats(0.3, 10), st.floats(-50, 50))
@settings(max_examples=40, deadline=None)
def test_it_is_never_negative_and_a_shift_of_all_logits_changes_nothing(seed: int, temperature: float, shift: float) -> None:
    student, teacher = logits(3, 5, seed=seed), logits(3, 5, seed=seed + 1)
    plain = soft_labels(student, teacher, temperature)
    assert (plain >= -1e-12).all()
    assert torch.allclose(plain, soft_labels(student + shift, teacher, temperature), atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_give_finite_losses_and_gradients(dtype: torch.dtype) -> None:
    student = torch.tensor([[6e4, -6e4, 0.0], [0.0, 0.0, 6e4]]).to(dtype).requires_grad_()
    teacher = torch.tensor([[-6e4, 6e4, 0.0], [0.0, 0.0, 6e4]]).to(dtype)
    loss = soft_labels(student, teacher, 1.0)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    assert torch.isfinite(student.grad).all()


def test_classes_that_both_rule_out_cost_nothing() -> None:
    out = torch.tensor([0.0, 0.0, -math.inf], dtype=torch.float64)
    student = (logits(2, 3) + out).requires_grad_()
    teacher = logits(2, 3, seed=1) + out
    loss = soft_labels(student, teacher, 2.0)
    loss.sum().backward()
    assert torch.allclose(loss, soft_labels(student[:, :2], teacher[:, :2], 2.0))
    assert torch.isfinite(student.grad).all()


# The other divergences -------------------------------------------------------------------------------------------------

OTHERS: dict[str, Callable[..., Tensor]] = {
    "reverse": reverse,
    "jensen-shannon": jensen_shannon,
    "jensen-shannon, b 0.1": lambda student, teacher, temperature=1.0: jensen_shannon(student, teacher, temperature, 0.1),
    "mse": squared,
    "cosine": lambda student, teacher, temperature=1.0: cosine_distance(student, teacher),
}


def shares(logits: list[float], temperature: float) -> list[float]:
    found = [math.exp(z / temperature) for z in logits]
    return [each / sum(found) for each in found]


def divergence(of: list[float], to: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(of, to, strict=True))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_reverse_is_the_formula_written_out(temperature: float) -> None:
    student, teacher = logits(7, 5), logits(7, 5, seed=1)
    expected = [temperature**2 * divergence(shares(s, temperature), shares(t, temperature)) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert reverse(student, teacher, temperature).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("balance", [0.1, 0.5, 0.8])
def test_jensen_shannon_is_the_formula_written_out(temperature: float, balance: float) -> None:
    student, teacher, expected = logits(7, 5), logits(7, 5, seed=1), []
    for z_s, z_t in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = shares(z_s, temperature), shares(z_t, temperature)
        mixed = [balance * b + (1 - balance) * a for a, b in zip(q, p, strict=True)]
        expected.append(temperature**2 * (balance * divergence(p, mixed) + (1 - balance) * divergence(q, mixed)))
    assert jensen_shannon(student, teacher, temperature, balance).tolist() == pytest.approx(expected, rel=1e-6)


def test_jensen_shannon_is_trls_generalized_one_times_temperature_squared() -> None:
    student, teacher, balance = logits(7, 5) / 3, logits(7, 5, seed=1) / 3, 0.3
    stated, asked = student.log_softmax(-1), teacher.log_softmax(-1)
    mixed = torch.logsumexp(torch.stack([stated + math.log(1 - balance), asked + math.log(balance)]), 0)
    to_teacher, to_student = (nn.functional.kl_div(mixed, each, reduction="none", log_target=True) for each in (asked, stated))
    expected = (balance * to_teacher + (1 - balance) * to_student).sum(-1)
    assert torch.allclose(jensen_shannon(student * 3, teacher * 3, 3.0, balance), 9 * expected, rtol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_mse_is_textbrewers_on_softened_logits(temperature: float) -> None:
    student, teacher = logits(7, 5), logits(7, 5, seed=1)
    expected = [sum((a / temperature - b / temperature) ** 2 for a, b in zip(s, t, strict=True)) / 5 for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert squared(student, teacher, temperature).tolist() == pytest.approx(expected, rel=1e-6)
    assert squared(student, teacher, temperature).mean().item() == pytest.approx(nn.functional.mse_loss(student / temperature, teacher / temperature).item())


def test_cosine_is_the_formula_written_out() -> None:
    student, teacher, expected = logits(7, 5), logits(7, 5, seed=1), []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        expected.append(1 - sum(a * b for a, b in zip(s, t, strict=True)) / math.sqrt(sum(a * a for a in s) * sum(b * b for b in t)))
    assert cosine_distance(student, teacher).tolist() == pytest.approx(expected, rel=1e-6)
    assert torch.allclose(cosine_distance(student, teacher), cosine_distance(student * 7, teacher / 3))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_reverses_gradient_is_its_closed_form(temperature: float) -> None:
    student, teacher = logits(4, 6).requires_grad_(), logits(4, 6, seed=1)
    reverse(student, teacher, temperature).sum().backward()
    stated, asked = (student.detach() / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    expected = temperature * stated.exp() * (stated - asked - (stated.exp() * (stated - asked)).sum(-1, keepdim=True))
    assert torch.allclose(student.grad, expected, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("balance", [0.1, 0.5, 0.8])
def test_jensen_shannons_gradient_is_its_closed_form(temperature: float, balance: float) -> None:
    student, teacher = logits(4, 6).requires_grad_(), logits(4, 6, seed=1)
    jensen_shannon(student, teacher, temperature, balance).sum().backward()
    stated, asked = (student.detach() / temperature).softmax(-1), (teacher / temperature).softmax(-1)
    ratio = (stated / (balance * asked + (1 - balance) * stated)).log()
    expected = temperature * (1 - balance) * stated * (ratio - (stated * ratio).sum(-1, keepdim=True))
    assert torch.allclose(student.grad, expected, atol=1e-12)


@pytest.mark.parametrize(("objective", "share"), [(reverse, 0.5), (jensen_shannon, 0.125), (lambda *given: jensen_shannon(*given, 0.2), 0.08)])
def test_at_great_temperature_they_are_a_share_of_the_squared_distance_of_centred_logits(objective: Callable[..., Tensor], share: float) -> None:
    student, teacher = (each - each.mean(-1, keepdim=True) for each in (logits(4, 6), logits(4, 6, seed=1)))
    assert torch.allclose(objective(student, teacher, 1e4), share * (student - teacher).square().mean(-1), rtol=1e-3)


@pytest.mark.parametrize("name", OTHERS)
def test_identical_models_give_zero_loss_and_zero_gradient_whatever_the_divergence(name: str) -> None:
    student = logits(4, 6).requires_grad_()
    loss = OTHERS[name](student, student.detach().clone(), 4.0)
    loss.sum().backward()
    assert loss.abs().max() < 1e-14
    assert student.grad.abs().max() < 1e-14


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", OTHERS)
def test_extreme_logits_give_finite_losses_and_gradients_whatever_the_divergence(name: str, dtype: torch.dtype) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 1e4], [0.0, 0.0, 0.0]]).to(dtype).requires_grad_()
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [0.0, 0.0, 1e4], [1e4, 0.0, 0.0]]).to(dtype)
    loss = OTHERS[name](student, teacher, 1.0)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", OTHERS)
def test_classes_that_both_rule_out_cost_nothing_whatever_the_divergence(name: str) -> None:
    out = torch.tensor([0.0, 0.0, -math.inf], dtype=torch.float64)
    student = (logits(2, 3) + out).requires_grad_()
    teacher = logits(2, 3, seed=1) + out
    loss = OTHERS[name](student, teacher, 2.0)
    loss.sum().backward()
    without = OTHERS[name](student[:, :2], teacher[:, :2], 2.0) * (2 / 3 if name == "mse" else 1)
    assert torch.allclose(loss, without)
    assert torch.isfinite(student.grad).all()


def test_jensen_shannon_is_finite_where_only_one_rules_a_class_out_and_at_most_log_2() -> None:
    student, teacher = torch.tensor([[0.0, -math.inf]]).requires_grad_(), torch.tensor([[-math.inf, 0.0]])
    loss = jensen_shannon(student, teacher)
    loss.sum().backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert torch.isfinite(student.grad).all()


def test_a_divergence_of_two_distributions_is_torchs() -> None:
    of, to = logits(3, 5).log_softmax(-1), logits(3, 5, seed=1).log_softmax(-1)
    assert torch.allclose(kullback_leibler(of, to), nn.functional.kl_div(to, of, reduction="none", log_target=True).sum(-1))


# The stage -----------------------------------------------------------------------------------------------------------


def test_the_loss_is_labels_and_teacher_in_the_shares_of_alpha() -> None:
    student, teacher = net(0), net(1).eval()
    x, y = points()
    run = context((x, y), teacher)
    answers = copy.deepcopy(student).train()(x)
    label, soft = nn.functional.cross_entropy(answers, y).item(), soft_labels(answers, teacher(x), 2.0).mean().item()
    found = first_loss(Soft(alpha=0.7, temperature=2.0, steps=1, batch_size=64), student, run)
    assert found["label"] == pytest.approx(label, rel=1e-5)
    assert found["soft"] == pytest.approx(soft, rel=1e-5)
    assert found["loss"] == pytest.approx(0.3 * label + 0.7 * soft, rel=1e-5)


def test_without_labels_they_are_neither_asked_for_nor_used() -> None:
    x, y = points()
    plain, ignoring = net(0), net(0)
    fit(plain, [Soft(labels=False, epochs=2)], context(x, net(1)))
    fit(ignoring, [Soft(labels=False, epochs=2)], context((x, torch.zeros_like(y)), net(1)))
    assert torch.equal(weights(plain), weights(ignoring))


@pytest.mark.parametrize(("options", "wanted"), [({}, True), ({"alpha": 1.0}, False), ({"labels": False}, False), ({"alpha": 0.0}, True)])
def test_labels_are_needed_exactly_where_they_have_a_share(options: dict[str, Any], wanted: bool) -> None:
    assert Soft(**options).required_inputs() == Needs(train=True, teacher=True, labels=wanted)


def test_missing_labels_are_refused_with_the_way_out() -> None:
    with pytest.raises(KdError, match="distill soft needs labels") as caught:
        fit(net(0), [Soft()], context(points()[0], net(1)))
    assert "--no-labels" in str(caught.value)


@pytest.mark.slow
def test_the_student_comes_to_agree_with_the_teacher() -> None:
    student, teacher, x = net(0), net(1).eval(), points(256)[0]
    before = (student.eval()(x).argmax(1) == teacher(x).argmax(1)).float().mean()
    fit(student, [Soft(labels=False, epochs=20, learning_rate=0.02)], context(x, teacher))
    after = (student(x).argmax(1) == teacher(x).argmax(1)).float().mean()
    assert before < 0.8
    assert after > 0.9


def test_its_line_says_what_differs_from_the_defaults() -> None:
    stage = Soft(labels=False, temperature=2.0, student="small")
    assert set(stage.line().split(" --")) == {"distill soft", "no-labels", "temperature 2", "student small"}


# Teacher and student -------------------------------------------------------------------------------------------------


def training_teacher() -> nn.Module:
    teacher = net(1, dropout=0.5).train()
    teacher[1].eval()
    teacher[0].weight.requires_grad_(False)
    return teacher


def test_the_teacher_is_as_before_to_the_bit() -> None:
    teacher = training_teacher()
    before = fingerprint(teacher)
    fit(net(0), [Soft(epochs=2)], context(teacher=teacher))
    assert fingerprint(teacher) == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_teacher_is_as_before_after_an_interrupt_at_any_moment() -> None:
    teacher = training_teacher()
    before, run, student = fingerprint(teacher), context(points(32), teacher), net(0)

    def train() -> None:
        fit(student, [Soft()], run)

    for moment in moments(train):
        interrupted(train, moment)
        if fingerprint(teacher) != before:
            gc.collect()  # it hit between a block and its context manager, which ends when it is collected
        assert fingerprint(teacher) == before


def test_the_teacher_is_as_before_when_the_user_cancels() -> None:
    teacher = training_teacher()
    before, run = fingerprint(teacher), context(teacher=teacher)
    run.observe = lambda progress: run.cancelled.set()
    with pytest.raises(Cancelled):
        fit(net(0), [Soft(epochs=9)], run)
    assert fingerprint(teacher) == before


def test_the_teacher_answers_without_dropout() -> None:
    teacher = net(1, dropout=0.9).train()
    loud, quiet = (first_loss(Soft(labels=False, steps=1), net(0), context(teacher=each))["soft"] for each in (teacher, copy.deepcopy(teacher).eval()))
    assert loud == quiet


def test_without_a_teacher_the_model_the_session_began_with_teaches() -> None:
    run = context()
    spoken, silent = net(0), net(0)
    fit(spoken, [Soft()], context(teacher=run.original))
    fit(silent, [Soft()], run)
    assert torch.equal(weights(spoken), weights(silent))


def test_a_student_of_the_users_own_is_trained_as_a_copy_and_taught_by_the_model_at_hand() -> None:
    small, current = net(7, width=4), net(2).eval()
    run = context(small=small)
    before, kept = fingerprint(small), fingerprint(current)
    stage = Soft(student="small", labels=False, epochs=2)
    made = stage.apply(current, run)
    taught = private = copy.deepcopy(small)
    fit(taught, [Soft(labels=False, epochs=2)], context(teacher=current))
    assert made is not small
    assert made[0].out_features == 4
    assert torch.equal(weights(made), weights(private))
    assert (fingerprint(small), fingerprint(current)) == (before, kept)
    assert stage.forecast(current, run).model[0].out_features == 4


def test_a_teacher_of_the_session_goes_before_the_model_at_hand() -> None:
    small, teacher = net(7, width=4), net(3)
    made = Soft(student="small").apply(net(2), context(teacher=teacher, small=small))
    taught = copy.deepcopy(small)
    fit(taught, [Soft()], context(teacher=teacher))
    assert torch.equal(weights(made), weights(taught))


def test_a_student_that_the_session_does_not_know_is_named() -> None:
    with pytest.raises(KdError, match="'tiny'"):
        Soft(student="tiny").apply(net(0), context())


def test_other_class_counts_are_refused_before_any_step() -> None:
    student = net(0)
    before = weights(student)
    with pytest.raises(KdError, match="the teacher has 5 classes, the student 3"):
        fit(student, [Soft()], context(teacher=net(1, classes=5)))
    assert torch.equal(weights(student)[:96], before[:96])


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jensen-shannon"])
@pytest.mark.parametrize("task", [Regression(), Embedding()])
def test_tasks_without_classes_are_refused_with_the_way_out(task: Task, divergence: str) -> None:
    with pytest.raises(KdError, match="compares classes.*--divergence mse or cosine"):
        fit(net(0), [Soft(labels=False, divergence=divergence)], context(teacher=net(1), task=task))


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["mse", "cosine"])
@pytest.mark.parametrize("task", [Regression(), Embedding(), MultiLabel()])
def test_numbers_and_vectors_are_compared_by_mse_and_cosine_at_temperature_1(task: Task, divergence: str) -> None:
    student, teacher, x = net(0), net(1).eval(), points()[0]
    objective = {"mse": squared, "cosine": cosine_distance}[divergence]
    expected = objective(copy.deepcopy(student).train()(x), teacher(x)).mean().item()
    stage = Soft(labels=False, divergence=divergence, epochs=8, learning_rate=0.02)
    assert list(stage.check(student, context(x, teacher, task))) == []
    before, first = fingerprint(teacher), first_loss(Soft(**dict(stage) | {"steps": 1, "batch_size": 64}), copy.deepcopy(student), context(x, teacher, task))
    fit(student, [stage], context(x, teacher, task))
    assert first["soft"] == pytest.approx(expected, rel=1e-5)
    assert objective(student(x), teacher(x)).mean() < 0.5 * expected
    assert fingerprint(teacher) == before


def test_labels_that_are_decided_one_by_one_are_compared_by_their_two_probabilities() -> None:
    """T² · the mean over labels of KL((σ(z_t / T), 1 - σ(z_t / T)) ‖ the student's), written out."""
    student, teacher, x = net(0), net(1).eval(), points()[0]
    answers = copy.deepcopy(student).train()(x), teacher(x)
    mine, theirs = ((logits.detach() / 4.0).sigmoid().double().clamp(1e-9, 1 - 1e-9) for logits in answers)
    expected = 16 * (theirs * (theirs / mine).log() + (1 - theirs) * ((1 - theirs) / (1 - mine)).log()).mean()
    found = first_loss(Soft(labels=False, temperature=4.0, steps=1, batch_size=64), student, context(x, teacher, MultiLabel()))
    assert found["soft"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(("task", "objective"), [(Regression(), squared), (Embedding(), cosine_distance)])
def test_the_default_compares_numbers_by_their_squared_distance_and_vectors_by_their_cosine(task: Task, objective: Callable[..., Tensor]) -> None:
    student, teacher, x = net(0), net(1).eval(), points()[0]
    expected = objective(copy.deepcopy(student).train()(x), teacher(x)).mean().item()
    assert first_loss(Soft(labels=False, steps=1, batch_size=64), student, context(x, teacher, task))["soft"] == pytest.approx(expected, rel=1e-5)


def test_a_top_k_of_labels_that_are_decided_one_by_one_is_refused() -> None:
    with pytest.raises(KdError, match="--top-k keeps the most probable of several classes"):
        fit(net(0), [Soft(labels=False, top_k=2)], context(teacher=net(1), task=MultiLabel()))


@pytest.mark.parametrize(("divergence", "objective"), [("reverse", reverse), ("jensen-shannon", jensen_shannon), ("mse", squared)])
def test_the_stage_compares_as_its_options_state(divergence: str, objective: Callable[..., Tensor]) -> None:
    student, teacher, x = net(0), net(1).eval(), points()[0]
    expected = objective(copy.deepcopy(student).train()(x), teacher(x), 3.0).mean().item()
    found = first_loss(Soft(labels=False, divergence=divergence, temperature=3.0, steps=1, batch_size=64), student, context(x, teacher))
    assert found["soft"] == pytest.approx(expected, rel=1e-5)


def test_the_balance_reaches_the_objective() -> None:
    student, teacher, x = net(0), net(1).eval(), points()[0]
    expected = jensen_shannon(copy.deepcopy(student).train()(x), teacher(x), 1.0, 0.2).mean().item()
    found = first_loss(Soft(labels=False, divergence="jensen-shannon", balance=0.2, steps=1, batch_size=64), student, context(x, teacher))
    assert found["soft"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_a_balance_of_one_side_only_is_no_jensen_shannon(balance: float) -> None:
    with pytest.raises(KdError, match="--balance"):
        Soft.build("distill soft", {"balance": balance})


def test_vectors_of_other_sizes_are_refused_in_their_own_words() -> None:
    with pytest.raises(KdError, match="the teacher outputs 5 numbers for each item, the student 3"):
        fit(net(0), [Soft(labels=False, divergence="cosine")], context(points()[0], net(1, classes=5), Embedding()))


@pytest.mark.parametrize(("divergence", "task", "stated"), [("cosine", Regression(), "only their sign"), ("cosine", Embedding(), "only their sign")])
def test_what_single_numbers_cannot_teach_is_refused_before_training(divergence: str, task: Task, stated: str) -> None:
    student = net(0, classes=1)
    before = weights(student)
    with pytest.raises(KdError, match=stated):
        fit(student, [Soft(labels=False, divergence=divergence)], context(points()[0], net(1, classes=1), task))
    assert torch.equal(weights(student), before)


@pytest.mark.slow
def test_together_is_the_sum_with_the_other_stage() -> None:
    teacher = net(1)
    run, seen = context(teacher=teacher), []
    run.observe = seen.append
    both = fit(net(0), [Soft(labels=False, epochs=2, optimizer="sgd", learning_rate=0.01), Finetune()], run)
    shared = fit(net(0), [Soft(alpha=0.5, epochs=2, optimizer="sgd", learning_rate=0.02)], context(teacher=teacher))
    last = seen[-1].figures
    assert last["loss"] == pytest.approx(last["distill.soft.soft"] + last["tune.finetune.label"])
    assert torch.allclose(weights(both), weights(shared), atol=1e-5)


# Language models -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"divergence": "reverse"}, {"divergence": "jensen-shannon"}, {"divergence": "mse"}, {"divergence": "cosine"}, {"top_k": 4}])
def test_every_divergence_is_blind_to_padding_and_cut(options: dict[str, Any]) -> None:
    plain, other = Speller(0), Speller(0)
    for model, data in ((plain, words()), (other, words(2, (1, 2, 6)))):
        fit(model, [Soft(epochs=3, learning_rate=0.05, accumulate=8, **options)], context(data, Speller(1), CausalLM()))
    assert torch.allclose(weights(plain), weights(other), rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("padding", "cuts"), [(4, ()), (0, (3,)), (2, (1, 2, 6))])
def test_language_models_learn_token_by_token_whatever_the_padding_and_the_cut(padding: int, cuts: tuple[int, ...]) -> None:
    plain, other = Speller(0), Speller(0)
    for model, data in ((plain, words()), (other, words(padding, cuts))):
        fit(model, [Soft(epochs=5, learning_rate=0.05, accumulate=8)], context(data, Speller(1), CausalLM()))
    assert torch.allclose(weights(plain), weights(other), rtol=0, atol=1e-9)
    assert not torch.allclose(weights(plain), weights(Speller(0)), atol=1e-3)


def test_padded_heads_of_one_vocabulary_are_cut_and_that_is_reported() -> None:
    student, narrow = Speller(0), Speller(1, head=11)
    wide = Speller(1, head=14)
    with torch.no_grad():
        wide.head.weight[:11], wide.head.bias[:11] = narrow.head.weight, narrow.head.bias
        wide.embed.load_state_dict(narrow.embed.state_dict())
    other, run = copy.deepcopy(student), context(words(), wide, CausalLM())
    fit(student, [Soft(epochs=2)], run)
    fit(other, [Soft(epochs=2)], context(words(), narrow, CausalLM()))
    assert torch.allclose(weights(student), weights(other), rtol=0, atol=1e-12)
    assert sum("vocabulary cut to 11" in note for note in run.notes) == 1


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(KdError, match="the teacher has 3000 classes, the student 11"):
        fit(Speller(0), [Soft()], context(words(), Speller(1, head=3000), CausalLM()))


# Does it help? -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> dict[str, Any]:
    """100 labelled images, 1200 without labels, and 497 to test on; the teacher saw all 1300 labels."""
    x, y = digit_images()
    teacher = fit(cnn(8, 1), [Finetune(epochs=6, learning_rate=0.02, batch_size=64)], context((x[:1300], y[:1300])))
    return {"few": (x[:100], y[:100]), "unlabelled": x[100:1300], "test": (x[1300:], y[1300:]), "teacher": teacher}


def accuracy(model: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    return (model(test[0]).argmax(1) == test[1]).float().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.05), ("adamw", 0.005)])
def test_unlabelled_images_and_a_teacher_beat_a_hundred_labels_by_five_points(digits: dict[str, Any], optimizer: str, rate: float) -> None:
    options = {"steps": 200, "optimizer": optimizer, "learning_rate": rate, "batch_size": 64}
    labels = fit(cnn(4, 3), [Finetune(**options)], context(digits["few"]))
    taught = fit(cnn(4, 3), [Soft(labels=False, **options)], context(digits["unlabelled"], digits["teacher"]))
    assert accuracy(digits["teacher"], digits["test"]) > 0.95
    assert accuracy(taught, digits["test"]) > accuracy(labels, digits["test"]) + 0.05


@pytest.mark.slow
def test_any_callable_module_can_teach() -> None:
    class Fixed(nn.Module):
        """No parameters, as a model in onnxruntime has none."""

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :3] * 4

    student = net(0)
    fit(student, [Soft(labels=False, epochs=20, learning_rate=0.02)], context(points(256)[0], Fixed()))
    x, y = points(256)
    assert (student(x).argmax(1) == y).float().mean() > 0.85


def test_the_rule_of_every_stage_holds() -> None:
    from kdkit.stages.validation import validate_stage

    made: list[Callable] = [Soft, Finetune]
    assert [list(validate_stage(each)) for each in made] == [[], []]
