"""distill standardized: the paper's formula, blind to scale and shift, equal logits, ruled-out classes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from kdkit.errors import KdError
from kdkit.stages.stage import Needs
from kdkit.tasks import CausalLM, Regression
from kdkit.training import fit
from kdkit_distill.response.standardized import Standardized, soft_standardized, standardized
from tests.fixtures.lessons import Speller, context, fingerprint, first_loss, logits, net, points, weights, words


def written_out(student: list[float], teacher: list[float], temperature: float) -> float:
    found = []
    for z in (student, teacher):
        mean = sum(z) / len(z)
        std = math.sqrt(sum((each - mean) ** 2 for each in z) / (len(z) - 1))
        scores = [math.exp((each - mean) / (std + 1e-7) / temperature) for each in z]
        found.append([each / sum(scores) for each in scores])
    return temperature**2 * sum(b * math.log(b / a) for a, b in zip(*found, strict=True))


# The objective -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 2.0, 4.0])
def test_it_is_the_formula_written_out(temperature: float) -> None:
    student, teacher = logits(7, 5), logits(7, 5, seed=1)
    expected = [written_out(s, t, temperature) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert soft_standardized(student, teacher, temperature).tolist() == pytest.approx(expected, rel=1e-6)


def test_it_is_the_authors_code() -> None:
    def normalize(z: torch.Tensor) -> torch.Tensor:
        return (z - z.mean(dim=-1, keepdims=True)) / (1e-7 + z.std(dim=-1, keepdims=True))

    student, teacher = logits(7, 5), logits(7, 5, seed=1)
    reference = nn.functional.kl_div((normalize(student) / 2).log_softmax(1), (normalize(teacher) / 2).softmax(1), reduction="none").sum(1).mean() * 4
    assert soft_standardized(student, teacher, 2.0).mean().item() == pytest.approx(reference.item(), rel=1e-9)


def test_a_positive_scale_and_a_shift_of_the_students_logits_change_nothing() -> None:
    student, teacher = logits(7, 5), logits(7, 5, seed=1)
    assert torch.allclose(soft_standardized(student, teacher, 2.0), soft_standardized(0.1 * student + 3, 7 * teacher - 1, 2.0), rtol=1e-5)


def test_identical_models_up_to_scale_give_zero_loss_and_zero_gradient() -> None:
    for scale in (1.0, 5.0):
        student = logits(4, 6).requires_grad_()
        loss = soft_standardized(student, scale * student.detach(), 2.0)
        loss.sum().backward()
        assert loss.abs().max() < 1e-12
        assert student.grad.abs().max() < 1e-6  # of the eps


def test_its_gradient_is_that_of_finite_differences() -> None:
    teacher = logits(4, 5, seed=1)
    assert torch.autograd.gradcheck(lambda student: soft_standardized(student, teacher, 2.0), logits(4, 5).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_and_equal_logits_give_finite_losses_and_gradients(dtype: torch.dtype) -> None:
    student = torch.tensor([[6e4, -6e4, 0.0], [0.0, 0.0, 6e4], [0.1, 0.1, 0.1], [0.0, 0.0, 0.0]]).to(dtype).requires_grad_()
    teacher = torch.tensor([[-6e4, 6e4, 0.0], [0.0, 0.0, 6e4], [6e4, 0.0, 0.0], [7.0, 7.0, 7.0]]).to(dtype)
    loss = soft_standardized(student, teacher, 1.0)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    assert student.grad[2:].abs().max() == 0
    assert torch.isfinite(student.grad).all()


def test_classes_that_both_rule_out_have_no_part_in_mean_and_deviation() -> None:
    out = torch.tensor([0.0, 0.0, 0.0, -math.inf], dtype=torch.float64)
    student, teacher = (logits(3, 4) + out).requires_grad_(), logits(3, 4, seed=1) + out
    loss = soft_standardized(student, teacher, 2.0)
    loss.sum().backward()
    assert torch.allclose(loss, soft_standardized(student[:, :3], teacher[:, :3], 2.0))
    assert torch.isfinite(student.grad).all()


def test_standardized_logits_have_mean_0_and_deviation_1() -> None:
    found = standardized(logits(7, 5))
    assert torch.allclose(found.mean(-1), torch.zeros(7, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(found.std(-1), torch.ones(7, dtype=torch.float64), atol=1e-6)


# The stage -----------------------------------------------------------------------------------------------------------


def test_it_needs_a_teacher_and_labels() -> None:
    assert Standardized().required_inputs() == Needs(train=True, teacher=True, labels=True)


def test_the_defaults_are_the_papers_nine_to_a_tenth_at_temperature_2() -> None:
    student, teacher, (x, y) = net(0), net(1).eval(), points()
    answers = copy.deepcopy(student).train()(x)
    expected, label = soft_standardized(answers, teacher(x), 2.0).mean().item(), nn.functional.cross_entropy(answers, y).item()
    found = first_loss(Standardized(steps=1, batch_size=64), student, context((x, y), teacher))
    assert found["standardized"] == pytest.approx(expected, rel=1e-4)
    assert found["loss"] == pytest.approx(0.1 * label + 9 * expected, rel=1e-4)


@pytest.mark.slow
def test_the_student_comes_to_agree_and_the_teacher_is_as_before_to_the_bit() -> None:
    student, teacher, x = net(0), net(1, dropout=0.5).train(), points(256)[0]
    before, keys, answers = fingerprint(teacher), list(student.state_dict()), copy.deepcopy(teacher).eval()(x).argmax(1)
    agreed = (copy.deepcopy(student).eval()(x).argmax(1) == answers).float().mean()
    fit(student, [Standardized(labels=False, epochs=20, learning_rate=0.02)], context(x, teacher))
    assert fingerprint(teacher) == before
    assert list(student.state_dict()) == keys
    assert (student(x).argmax(1) == answers).float().mean() > max(0.85, agreed + 0.2)


@pytest.mark.slow
@pytest.mark.parametrize(("padding", "cuts"), [(4, ()), (0, (3,)), (2, (1, 2, 6))])
def test_padding_and_cut_change_nothing(padding: int, cuts: tuple[int, ...]) -> None:
    plain, other = Speller(0), Speller(0)
    for model, data in ((plain, words()), (other, words(padding, cuts))):
        fit(model, [Standardized(epochs=3, learning_rate=0.05, accumulate=8)], context(data, Speller(1), CausalLM()))
    assert torch.allclose(weights(plain), weights(other), rtol=0, atol=1e-9)
    assert not torch.allclose(weights(plain), weights(Speller(0)), atol=1e-3)


# Bad input -----------------------------------------------------------------------------------------------------------


def test_two_classes_are_refused_before_training_with_the_reason() -> None:
    student, (x, y) = net(0, classes=2), points()
    before = weights(student)
    with pytest.raises(KdError, match="only the sign is left"):
        fit(student, [Standardized()], context((x, y % 2), net(1, classes=2)))
    assert torch.equal(weights(student), before)


def test_tasks_without_classes_are_refused() -> None:
    with pytest.raises(KdError, match="compares classes"):
        fit(net(0), [Standardized()], context(teacher=net(1), task=Regression()))
