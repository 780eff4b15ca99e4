"""distill hints: the formula, its gradient, joint and in two stages."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdkit.errors import KdError
from kdkit.training import fit
from kdkit_distill.feature.hints import Hints, hint_distance
from tests.fixtures import zoo
from tests.fixtures.lessons import context, numbers, of_zoo, sentences, taught, weights


def test_it_is_the_mean_square_written_out() -> None:
    student, teacher = numbers(3, 2, 4, 5), numbers(3, 2, 4, 5, seed=1)
    expected = []
    for one, two in zip(student.tolist(), teacher.tolist(), strict=True):
        squares = [(a - b) ** 2 for c, d in zip(one, two, strict=True) for e, f in zip(c, d, strict=True) for a, b in zip(e, f, strict=True)]
        expected.append(sum(squares) / len(squares))
    assert hint_distance(student, teacher).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("shape", "values"), [((4, 3), (4,)), ((4, 5, 3), (4, 5)), ((4, 3, 2, 2), (4,))])
def test_its_mean_is_torchs_and_tokens_keep_theirs_apart(shape: tuple[int, ...], values: tuple[int, ...]) -> None:
    student, teacher = numbers(*shape), numbers(*shape, seed=1)
    found = hint_distance(student, teacher)
    assert found.shape == values
    assert found.mean().item() == pytest.approx(nn.functional.mse_loss(student, teacher).item(), rel=1e-12)


def test_its_gradient_is_twice_the_difference_a_channel() -> None:
    student, teacher = numbers(4, 6).requires_grad_(), numbers(4, 6, seed=1)
    hint_distance(student, teacher).sum().backward()
    assert torch.allclose(student.grad, 2 * (student.detach() - teacher) / 6)


def test_equal_features_cost_nothing() -> None:
    student = numbers(4, 3, 2, 2).requires_grad_()
    loss = hint_distance(student, student.detach().clone())
    loss.sum().backward()
    assert (loss == 0).all()
    assert (student.grad == 0).all()


def test_an_equal_student_has_nothing_to_learn() -> None:
    student = zoo.mlp()
    before = weights(student)
    for module in student.modules():
        module.p = 0.0
    reported = taught(Hints(labels=False, steps=3), student, context(of_zoo("mlp"), zoo.mlp()))
    assert reported[0]["loss"] == 0
    assert torch.equal(weights(student), before)


def test_the_loss_is_labels_and_hints_in_the_shares_of_alpha() -> None:
    reported = taught(Hints(alpha=0.7, weight=3.0, steps=1, layers=("second",)), zoo.mlp(), context(of_zoo("mlp"), zoo.mlp()))[0]
    assert reported["loss"] == pytest.approx(0.3 * reported["label"] + 0.7 * 3.0 * reported["hint"], rel=1e-5)


@pytest.mark.slow
def test_its_first_share_has_hints_alone_and_the_rest_all_but_hints() -> None:
    stage = Hints(hint_share=0.5, steps=100, also=("soft",))
    reported = taught(stage, zoo.cnn(), context(of_zoo("cnn"), zoo.cnn()))
    hints = [{"hint blocks.0", "hint blocks.1"} <= set(figures) for figures in reported]
    others = ["soft" in figures and "label" in figures for figures in reported]
    assert hints[0]
    assert not others[0]
    assert others[-1]
    assert not hints[-1]
    assert sum(hints) == pytest.approx(len(reported) / 2, abs=2)


def test_a_first_share_that_leaves_nothing_is_refused_before_training() -> None:
    problems = list(Hints(labels=False, hint_share=0.3).check(zoo.cnn(), context(of_zoo("cnn"), zoo.cnn())))
    assert any("leaves nothing to learn" in problem for problem in problems)
    assert not list(Hints(labels=False, hint_share=0.3, also=("soft",)).conflicts())


@pytest.mark.slow
def test_text_of_another_number_of_tokens_is_refused() -> None:
    class Shorter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = zoo.tiny_bert()
            self.fewer, self.head = nn.Linear(32, 32), nn.Linear(32, 2)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            tokens = self.inner.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return self.head(self.fewer(tokens[:, ::2]).mean(1))

    with pytest.raises(KdError, match="the numbers of tokens differ") as caught:
        fit(Shorter(), [Hints(layers=("fewer=bert.encoder.layer.1",), steps=1)], context(sentences(), zoo.tiny_bert()))
    assert "(8, 4, 32)" in str(caught.value)
    assert "(8, 7, 32)" in str(caught.value)


@pytest.mark.slow
def test_the_student_comes_to_have_the_teachers_features() -> None:
    teacher, student = zoo.cnn(), zoo.depthwise()
    reported = taught(Hints(labels=False, steps=150, learning_rate=0.01, weight=1.0, layers=("project=blocks.1",)), student, context(of_zoo("cnn"), teacher))
    assert reported[-1]["hint"] < 0.5 * reported[0]["hint"]
