"""distill correlation: both terms against numpy's correlation, what they are blind to, constant classes, the batch as a whole."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy
import pytest
import torch
from torch import Tensor, nn

from kdkit.errors import KdError
from kdkit.stages.stage import Needs
from kdkit.tasks import CausalLM, Regression
from kdkit.training import fit
from kdkit_distill.response.correlation import Correlation, correlated, inter_class, intra_class
from tests.fixtures.lessons import Speller, context, fingerprint, first_loss, logits, net, points, weights, words


def shares(logits: Tensor, temperature: float) -> numpy.ndarray:
    found = numpy.exp(logits.numpy() / temperature)
    return found / found.sum(1, keepdims=True)


# The objectives ------------------------------------------------------------------------------------------------------


def pearson(one: numpy.ndarray, two: numpy.ndarray) -> float:
    one, two = one - one.mean(), two - two.mean()
    return (one * two).sum() / (math.sqrt((one**2).sum() * (two**2).sum()) + 1e-8)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_they_are_the_formula_written_out(temperature: float) -> None:
    student, teacher = logits(7, 5), logits(7, 5, seed=1)
    stated, asked = shares(student, temperature), shares(teacher, temperature)
    inter = [temperature**2 * (1 - pearson(*rows)) for rows in zip(stated, asked, strict=True)]
    intra = temperature**2 * (1 - numpy.mean([pearson(*columns) for columns in zip(stated.T, asked.T, strict=True)]))
    assert inter_class(student, teacher, temperature).tolist() == pytest.approx(inter, rel=1e-9)
    assert intra_class(student, teacher, temperature).item() == pytest.approx(intra, rel=1e-9)


def test_but_for_the_eps_it_is_numpys_correlation() -> None:
    stated, asked = shares(logits(7, 5), 4.0), shares(logits(7, 5, seed=1), 4.0)
    expected = [numpy.corrcoef(*rows)[0, 1] for rows in zip(stated, asked, strict=True)]
    assert correlated(torch.from_numpy(stated), torch.from_numpy(asked)).tolist() == pytest.approx(expected, rel=1e-5)


def test_they_are_the_authors_code() -> None:
    student, teacher = logits(7, 5), logits(7, 5, seed=1)
    stated, asked = (student / 4).softmax(1), (teacher / 4).softmax(1)

    def pearson(a: Tensor, b: Tensor) -> Tensor:
        return nn.functional.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), eps=1e-8)

    assert inter_class(student, teacher, 4.0).mean().item() == pytest.approx(16 * (1 - pearson(stated, asked).mean()).item(), rel=1e-6)
    assert intra_class(student, teacher, 4.0).item() == pytest.approx(16 * (1 - pearson(stated.T, asked.T).mean()).item(), rel=1e-6)


def test_identical_models_give_zero_loss_and_zero_gradient() -> None:
    # up to the eps in the denominator, and where no class is constant over the batch
    for objective in (inter_class, intra_class):
        student = logits(7, 5).requires_grad_()
        loss = objective(student, student.detach().clone(), 2.0)
        loss.sum().backward()
        assert loss.abs().max() < 1e-5
        assert student.grad.abs().max() < 1e-5


def test_a_positive_scale_and_a_shift_change_no_correlation() -> None:
    one, two = logits(7, 5), logits(7, 5, seed=1)
    assert torch.allclose(correlated(one, two), correlated(3 * one + 5, 0.5 * two - 2), atol=1e-6)
    assert torch.allclose(correlated(one, 2 * one + 1), torch.ones(7, dtype=torch.float64))
    assert torch.allclose(correlated(one, -one), -torch.ones(7, dtype=torch.float64))


def test_a_class_that_is_constant_over_the_batch_costs_1_and_pulls_nowhere() -> None:
    asked = logits(6, 4, seed=1).softmax(-1)
    stated = logits(6, 4).softmax(-1)
    stated[:, 2] = 0.25
    stated.requires_grad_()
    found = correlated(stated.T, asked.T)
    found.sum().backward()
    assert found[2] == 0
    assert (stated.grad[:, 2] == 0).all()
    assert (found[[0, 1, 3]] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_head_of_zeros_has_no_infinite_gradient(dtype: torch.dtype) -> None:
    for objective in (inter_class, intra_class):
        student = torch.zeros(8, 3, dtype=dtype, requires_grad=True)
        loss = objective(student, torch.randn(8, 3, dtype=dtype))
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert student.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_give_finite_losses_and_gradients(dtype: torch.dtype) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 1e4], [0.0, 0.0, 0.0]]).to(dtype).requires_grad_()
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [0.0, 0.0, 1e4], [1e4, 0.0, 0.0]]).to(dtype)
    losses = inter_class(student, teacher), intra_class(student, teacher)
    (losses[0].sum() + losses[1]).backward()
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss).all() for loss in losses)
    assert torch.isfinite(student.grad).all()


def test_the_gradients_are_those_of_finite_differences() -> None:
    teacher = logits(5, 4, seed=1)
    for objective in (inter_class, intra_class):
        assert torch.autograd.gradcheck(lambda student, objective=objective: objective(student, teacher, 2.0), logits(5, 4).requires_grad_())


# The stage -----------------------------------------------------------------------------------------------------------


def test_it_needs_a_teacher_and_labels() -> None:
    assert Correlation().required_inputs() == Needs(train=True, teacher=True, labels=True)
    assert Correlation(labels=False).required_inputs() == Needs(train=True, teacher=True)


def test_the_loss_is_labels_and_both_terms_with_their_weights() -> None:
    student, teacher, (x, y) = net(0), net(1).eval(), points()
    answers = copy.deepcopy(student).train()(x)
    inter, intra = inter_class(answers, teacher(x), 4.0).mean().item(), intra_class(answers, teacher(x), 4.0).item()
    label = nn.functional.cross_entropy(answers, y).item()
    found = first_loss(Correlation(alpha=0.7, inter_weight=2.0, intra_weight=3.0, temperature=4.0, steps=1, batch_size=64), student, context((x, y), teacher))
    assert (found["inter"], found["intra"]) == (pytest.approx(inter, rel=1e-4), pytest.approx(intra, rel=1e-4))
    assert found["loss"] == pytest.approx(0.3 * label + 0.7 * (2 * inter + 3 * intra), rel=1e-4)


@pytest.mark.slow
def test_the_student_comes_to_agree_and_the_teacher_is_as_before_to_the_bit() -> None:
    student, teacher, x = net(0), net(1, dropout=0.5).train(), points(256)[0]
    before, keys, answers = fingerprint(teacher), list(student.state_dict()), copy.deepcopy(teacher).eval()(x).argmax(1)
    agreed = (copy.deepcopy(student).eval()(x).argmax(1) == answers).float().mean()
    fit(student, [Correlation(labels=False, epochs=20, learning_rate=0.02)], context(x, teacher))
    assert fingerprint(teacher) == before
    assert list(student.state_dict()) == keys
    assert (student(x).argmax(1) == answers).float().mean() > max(0.85, agreed + 0.2)


@pytest.mark.parametrize("padding", [1, 4])
def test_padding_changes_nothing(padding: int) -> None:
    plain, other = Speller(0), Speller(0)
    for model, data in ((plain, words()), (other, words(padding))):
        fit(model, [Correlation(epochs=3, learning_rate=0.05)], context(data, Speller(1), CausalLM()))
    assert torch.allclose(weights(plain), weights(other), rtol=0, atol=1e-9)
    assert not torch.allclose(weights(plain), weights(Speller(0)), atol=1e-3)


def test_tokens_are_rows_of_one_matrix() -> None:
    student, teacher, data = Speller(0), Speller(1), words()
    batch = data.example()
    real = CausalLM().mask(batch)
    answers = [batch.call(model)["logits"][real].detach() for model in (student, teacher)]
    found = first_loss(Correlation(labels=False, steps=1), student, context(data, teacher, CausalLM()))
    assert found["inter"] == pytest.approx(inter_class(*answers).mean().item(), rel=1e-6)
    assert found["intra"] == pytest.approx(intra_class(*answers).item(), rel=1e-6)


def test_a_weight_of_nothing_leaves_its_term_out() -> None:
    assert "intra" not in first_loss(Correlation(intra_weight=0, steps=1), net(0), context(teacher=net(1)))
    (problem,) = Correlation(inter_weight=0, intra_weight=0).check(net(0), context())
    assert "both 0" in problem


# Bad input -----------------------------------------------------------------------------------------------------------


def test_batches_can_not_be_accumulated() -> None:
    (problem,) = Correlation(accumulate=2).check(net(0), context())
    assert "batches can't be accumulated" in problem
    with pytest.raises(KdError, match="batches can't be accumulated"):
        fit(net(0), [Correlation(accumulate=2)], context(teacher=net(1)))


def test_a_batch_of_one_has_nothing_to_compare() -> None:
    x, y = points()
    run = context((x, y), nn.Linear(6, 3))
    with pytest.raises(KdError, match="a batch of one item has nothing to compare it with"):
        fit(nn.Linear(6, 3), [Correlation(batch_size=1)], replace(run))


def test_tasks_without_classes_are_refused() -> None:
    with pytest.raises(KdError, match="compares classes"):
        fit(net(0), [Correlation()], context(teacher=net(1), task=Regression()))


def test_two_classes_of_an_item_are_refused_and_those_of_a_batch_are_not() -> None:
    x, y = points()
    with pytest.raises(KdError, match="with two classes the correlation over classes is always 1 or -1"):
        fit(net(0, classes=2), [Correlation(steps=1)], context((x, y % 2), net(1, classes=2)))
    fit(net(0, classes=2), [Correlation(steps=1, inter_weight=0)], context((x, y % 2), net(1, classes=2)))
