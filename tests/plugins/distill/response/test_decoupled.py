"""distill decoupled: both terms against their formula, the identity with plain distillation, labels that it can't do without."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdkit.errors import KdError
from kdkit.stages.stage import Needs
from kdkit.tasks import CausalLM, Embedding
from kdkit.training import fit
from kdkit.training.gradient_balance import GradientBalance
from kdkit_distill.response.decoupled import Decoupled, decoupled
from kdkit_distill.response.divergences import soft_labels
from tests.fixtures.lessons import Speller, context, fingerprint, first_loss, logits, net, points, weights, words

LABELS = torch.tensor([0, 4, 2, 2, 1, 3, 0])


def divergence(of: list[float], to: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(of, to, strict=True))


def shares(logits: list[float]) -> list[float]:
    return [math.exp(z) / sum(map(math.exp, logits)) for z in logits]


# The objective -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_both_terms_are_the_formula_written_out(temperature: float) -> None:
    student, teacher = logits(7, 5), logits(7, 5, seed=1)
    targets, others = decoupled(student, teacher, LABELS, temperature)
    for z_s, z_t, label, target, other in zip((student / temperature).tolist(), (teacher / temperature).tolist(), LABELS.tolist(), targets, others, strict=True):
        q, p = shares(z_s)[label], shares(z_t)[label]
        q_others, p_others = (shares(z[:label] + z[label + 1 :]) for z in (z_s, z_t))
        assert target.item() == pytest.approx(temperature**2 * divergence([p, 1 - p], [q, 1 - q]), rel=1e-6)
        assert other.item() == pytest.approx(temperature**2 * divergence(p_others, q_others), rel=1e-6)


def test_they_are_the_papers_own_code_where_that_is_safe() -> None:
    student, teacher, chosen = logits(7, 5), logits(7, 5, seed=1), nn.functional.one_hot(LABELS, 5).double()
    stated, asked = (student / 4).softmax(-1), (teacher / 4).softmax(-1)
    stated, asked = (torch.stack([(each * chosen).sum(-1), (each * (1 - chosen)).sum(-1)], -1) for each in (stated, asked))
    target = nn.functional.kl_div(stated.log(), asked, reduction="sum") * 16 / 7
    masked_s, masked_t = ((each / 4 - 1000 * chosen) for each in (student, teacher))
    other = nn.functional.kl_div(masked_s.log_softmax(-1), masked_t.softmax(-1), reduction="sum") * 16 / 7
    found = decoupled(student, teacher, LABELS, 4.0)
    assert [each.mean().item() for each in found] == pytest.approx([target.item(), other.item()], rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_plain_distillation_is_the_target_term_and_the_other_times_what_the_teacher_leaves_it(temperature: float) -> None:
    student, teacher = logits(7, 5), logits(7, 5, seed=1)
    target, other = decoupled(student, teacher, LABELS, temperature)
    left = 1 - (teacher / temperature).softmax(-1).gather(-1, LABELS[:, None])[:, 0]
    assert torch.allclose(soft_labels(student, teacher, temperature), target + left * other, rtol=1e-12)


def test_its_gradients_are_their_closed_forms() -> None:
    teacher, chosen = logits(7, 5, seed=1), nn.functional.one_hot(LABELS, 5).bool()
    for number in (0, 1):
        student = logits(7, 5).requires_grad_()
        decoupled(student, teacher, LABELS, 2.0)[number].sum().backward()
        stated, asked = (student.detach() / 2).softmax(-1), (teacher / 2).softmax(-1)
        q, p = stated[chosen][:, None], asked[chosen][:, None]
        among = [each.masked_fill(chosen, 0) / (1 - share) for each, share in ((stated, q), (asked, p))]
        expected = (q - p) * (chosen.double() - among[0]) if number == 0 else among[0] - among[1]
        assert torch.allclose(student.grad, 2 * expected, atol=1e-12)


def test_identical_models_give_zero_loss_and_zero_gradient() -> None:
    student = logits(7, 5).requires_grad_()
    losses = decoupled(student, student.detach().clone(), LABELS, 4.0)
    sum(losses).sum().backward()
    assert all(torch.equal(loss, torch.zeros_like(loss)) for loss in losses)
    assert student.grad.abs().max() < 1e-14


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sure_models_give_finite_losses_and_gradients(dtype: torch.dtype) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [1e4, 0.0, 0.0], [0.0, 0.0, 1e4], [0.0, 0.0, 0.0]]).to(dtype).requires_grad_()
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 0.0], [0.0, 0.0, -1e4], [1e4, 0.0, 0.0]]).to(dtype)
    losses = decoupled(student, teacher, torch.tensor([0, 0, 2, 1]))
    sum(losses).sum().backward()
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss).all() for loss in losses)
    assert torch.isfinite(student.grad).all()


def test_a_sure_student_still_learns_the_other_classes() -> None:
    student = torch.tensor([[60.0, 1.0, 0.0]]).requires_grad_()
    _, other = decoupled(student, torch.tensor([[60.0, 0.0, 1.0]]), torch.tensor([0]))
    other.backward()
    assert other.item() == pytest.approx(divergence(shares([0.0, 1.0]), shares([1.0, 0.0])), rel=1e-5)
    assert student.grad.abs().max() > 0.4


def test_classes_that_both_rule_out_cost_nothing() -> None:
    out = torch.tensor([0.0, 0.0, 0.0, -math.inf], dtype=torch.float64)
    student, teacher, labels = (logits(3, 4) + out).requires_grad_(), logits(3, 4, seed=1) + out, torch.tensor([0, 2, 1])
    found, without = decoupled(student, teacher, labels, 2.0), decoupled(student[:, :3], teacher[:, :3], labels, 2.0)
    sum(found).sum().backward()
    assert all(torch.allclose(*each) for each in zip(found, without, strict=True))
    assert torch.isfinite(student.grad).all()


def test_without_a_label_there_is_neither_loss_nor_gradient() -> None:
    student, labels = logits(7, 5).requires_grad_(), LABELS.clone()
    labels[2] = -100
    losses = decoupled(student, logits(7, 5, seed=1), labels)
    sum(losses).sum().backward()
    assert all(loss[2] == 0 and (loss[3:] > 0).all() for loss in losses)
    assert (student.grad[2] == 0).all()


# The stage -----------------------------------------------------------------------------------------------------------


def test_the_loss_is_labels_and_both_terms_with_their_weights() -> None:
    student, teacher, (x, y) = net(0), net(1).eval(), points()
    answers = copy.deepcopy(student).train()(x)
    target, other = (each.mean().item() for each in decoupled(answers, teacher(x), y, 4.0))
    label = nn.functional.cross_entropy(answers, y).item()
    found = first_loss(Decoupled(alpha=0.7, target_weight=2.0, other_weight=3.0, steps=1, batch_size=64), student, context((x, y), teacher))
    assert (found["target"], found["other"]) == (pytest.approx(target, rel=1e-5), pytest.approx(other, rel=1e-5))
    assert found["loss"] == pytest.approx(0.3 * label + 0.7 * (2 * target + 3 * other), rel=1e-5)


def test_the_defaults_are_the_papers() -> None:
    stage = Decoupled()
    assert (stage.target_weight, stage.constant_other_weight, stage.temperature, stage.alpha) == (1.0, 8.0, 4.0, 0.5)


def test_the_terms_have_gradients_of_one_length_by_default() -> None:
    x, y = points(64)
    found = {}
    for weight in ("auto", "published", 3.0):
        run = context((x, y), net(1))
        fit(net(0), [Decoupled(steps=1, batch_size=64, other_weight=weight)], run)
        (balance,) = [each for each in run.attachments if isinstance(each, GradientBalance)]
        found[weight] = {term.name: term for term in balance.gradient_norms}
    assert found["auto"]["other"].gradient == pytest.approx(found["auto"]["target"].gradient, rel=1e-4)
    assert found["published"]["other"].weight == pytest.approx(0.5 * 8)
    assert found[3.0]["other"].weight == pytest.approx(0.5 * 3)


def test_items_without_a_label_do_not_count() -> None:
    x, y = points(32)
    marked = torch.cat([y, torch.full((16,), -100)])
    student = nn.Linear(6, 3)
    found = [
        first_loss(Decoupled(alpha=1.0, steps=1, batch_size=48), copy.deepcopy(student), context(given, net(1))) for given in ((x, y), (torch.cat([x, x[:16]]), marked))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.slow
def test_the_student_comes_to_agree_and_the_teacher_is_as_before_to_the_bit() -> None:
    student, teacher, (x, _) = net(0), net(1, dropout=0.5).train(), points(256)
    before = fingerprint(teacher)
    keys, answers = list(student.state_dict()), copy.deepcopy(teacher).eval()(x).argmax(1)
    agreed = (copy.deepcopy(student).eval()(x).argmax(1) == answers).float().mean()
    fit(student, [Decoupled(alpha=1.0, other_weight=2.0, epochs=20, learning_rate=0.02)], context((x, answers), teacher))
    assert fingerprint(teacher) == before
    assert list(student.state_dict()) == keys
    assert (student(x).argmax(1) == answers).float().mean() > max(0.85, agreed + 0.2)


@pytest.mark.slow
@pytest.mark.parametrize(("padding", "cuts"), [(4, ()), (0, (3,)), (2, (1, 2, 6))])
def test_language_models_learn_token_by_token_whatever_the_padding_and_the_cut(padding: int, cuts: tuple[int, ...]) -> None:
    plain, other = Speller(0), Speller(0)
    for model, data in ((plain, words()), (other, words(padding, cuts))):
        fit(model, [Decoupled(epochs=3, learning_rate=0.05, accumulate=8)], context(data, Speller(1), CausalLM()))
    assert torch.allclose(weights(plain), weights(other), rtol=0, atol=1e-9)
    assert not torch.allclose(weights(plain), weights(Speller(0)), atol=1e-3)


def test_a_weight_of_nothing_leaves_its_term_out() -> None:
    assert "other" not in first_loss(Decoupled(other_weight=0, steps=1), net(0), context(teacher=net(1)))


# Bad input -----------------------------------------------------------------------------------------------------------


def test_two_classes_are_refused_before_training_with_the_reason() -> None:
    student, (x, y) = net(0, classes=2), points()
    before = weights(student)
    with pytest.raises(KdError, match="with two classes the second term is constant: there is only one other class"):
        fit(student, [Decoupled()], context((x, y % 2), net(1, classes=2)))
    assert torch.equal(weights(student), before)


def test_a_single_logit_is_two_classes() -> None:
    x, y = points()
    with pytest.raises(KdError, match="with two classes"):
        fit(net(0, classes=1), [Decoupled()], context((x, y % 2), net(1, classes=1)))


def test_the_target_term_alone_is_plain_distillation_of_two_classes() -> None:
    student, teacher, (x, y) = net(0, classes=2), net(1, classes=2).eval(), points()
    expected = soft_labels(copy.deepcopy(student).train()(x), teacher(x), 4.0).mean().item()
    found = first_loss(Decoupled(other_weight=0, steps=1, batch_size=64), student, context((x, y % 2), teacher))
    assert found["target"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"alpha": 1.0}])
def test_labels_are_always_needed_and_missing_ones_refused_before_training(options: dict[str, Any]) -> None:
    assert Decoupled(**options).required_inputs() == Needs(train=True, teacher=True, labels=True)
    with pytest.raises(KdError, match="distill decoupled needs labels"):
        fit(net(0), [Decoupled(**options)], context(points()[0], net(1)))


def test_doing_without_labels_is_refused_plainly() -> None:
    (problem,) = Decoupled(labels=False).check(net(0), context())
    assert "needs labels" in problem
    assert "--alpha 1" in problem


def test_two_weights_of_nothing_are_refused() -> None:
    (problem,) = Decoupled(target_weight=0, other_weight=0).check(net(0), context())
    assert "both 0" in problem


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_labels_that_are_probabilities_are_refused(alpha: float) -> None:
    x, y = points()
    with pytest.raises(KdError, match="needs class numbers"):
        fit(net(0), [Decoupled(alpha=alpha)], context((x, nn.functional.one_hot(y, 3).float()), net(1)))


def test_a_label_beyond_the_classes_is_named() -> None:
    x, y = points()
    with pytest.raises(KdError, match="a label is 12, but there are 3 classes"):
        fit(net(0), [Decoupled(alpha=1.0)], context((x, y + 10 * (y == 2)), net(1)))


def test_tasks_without_classes_are_refused() -> None:
    with pytest.raises(KdError, match="compares classes"):
        fit(net(0), [Decoupled()], context(teacher=net(1), task=Embedding()))


def test_class_numbers_kept_as_a_column_or_as_floats_are_class_numbers() -> None:
    x, y = points()
    plain, other = net(0), net(0)
    fit(plain, [Decoupled(alpha=1.0)], context((x, y), net(1)))
    labels: Tensor = y[:, None].float()
    fit(other, [Decoupled(alpha=1.0)], context((x, labels), net(1)))
    assert torch.allclose(weights(plain), weights(other))
