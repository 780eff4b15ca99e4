"""distill attention: both forms against their formulas, places that do not count, features without places."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from kdkit.errors import KdError
from kdkit.training import fit
from kdkit_distill.feature.attention import Attention, attention_distance, attention_map
from tests.fixtures import zoo
from tests.fixtures.lessons import context, numbers, of_zoo, taught


def written_out(student: Tensor, teacher: Tensor, form: str) -> list[float]:
    """The formulas of the code and of the paper, a number at a time; maps (batch, channels, height, width)."""
    found = []
    for items in zip(student.tolist(), teacher.tolist(), strict=True):
        maps = []
        for item in items:
            height, width = len(item[0]), len(item[0][0])
            q = [sum(channel[row][column] ** 2 for channel in item) / len(item) for row in range(height) for column in range(width)]
            length = math.sqrt(sum(value**2 for value in q))
            maps.append([value / length for value in q])
        squares = [(a - b) ** 2 for a, b in zip(*maps, strict=True)]
        found.append(sum(squares) / len(squares) if form == "code" else math.sqrt(sum(squares)))
    return found


@pytest.mark.parametrize("form", ["code", "paper"])
def test_it_is_the_formula_written_out(form: str) -> None:
    student, teacher = numbers(5, 3, 4, 2), numbers(5, 6, 4, 2, seed=1)
    assert attention_distance(student, teacher, form).tolist() == pytest.approx(written_out(student, teacher, form), rel=1e-6)


def test_its_mean_is_what_the_authors_code_gives() -> None:
    student, teacher = numbers(5, 3, 4, 4), numbers(5, 6, 4, 4, seed=1)

    def at(feature: Tensor) -> Tensor:
        return nn.functional.normalize(feature.pow(2).mean(1).view(feature.size(0), -1))

    assert attention_distance(student, teacher).mean().item() == pytest.approx((at(student) - at(teacher)).pow(2).mean().item(), rel=1e-12)


def test_the_papers_form_is_the_root_of_the_codes_times_the_places() -> None:
    student, teacher = numbers(5, 3, 4, 4), numbers(5, 3, 4, 4, seed=1)
    assert torch.allclose(attention_distance(student, teacher, "paper").square(), 16 * attention_distance(student, teacher))


@pytest.mark.parametrize("form", ["code", "paper"])
def test_equal_features_of_any_strength_cost_nothing(form: str) -> None:
    student = numbers(4, 3, 2, 2).requires_grad_()
    loss = attention_distance(student, 7 * student.detach(), form)
    loss.sum().backward()
    assert torch.allclose(loss, torch.zeros_like(loss), atol=1e-7)
    assert torch.isfinite(student.grad).all()
    assert form == "paper" or student.grad.abs().max() < 1e-7
    exact = attention_distance(student, student.detach().clone(), form)
    assert (exact == 0).all()
    assert (torch.autograd.grad(exact.sum(), student)[0] == 0).all()


def test_a_dead_map_gives_numbers() -> None:
    student = torch.zeros(2, 3, 2, 2, requires_grad=True)
    loss = attention_distance(student, torch.ones(2, 3, 2, 2))
    loss.sum().backward()
    assert loss.tolist() == [0.25, 0.25]
    assert torch.isfinite(student.grad).all()


def test_tokens_in_the_padding_neither_count_nor_are_seen() -> None:
    student, teacher = numbers(2, 4, 3), numbers(2, 4, 5, seed=1)
    real = torch.tensor([[True, True, True, False], [True, True, False, False]])
    found = attention_distance(student, teacher, real=real)
    assert found[1].item() == pytest.approx(attention_distance(student[1:, :2], teacher[1:, :2]).item(), rel=1e-12)
    assert torch.equal(found, attention_distance(student.masked_fill(~real[..., None], torch.inf), teacher, real=real))
    assert attention_map(student, real)[0, 3] == 0


def test_the_larger_map_is_pooled() -> None:
    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage, self.head = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU()), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stage(x).mean((2, 3)))

    torch.manual_seed(0)
    student, teacher = Strided(), zoo.cnn()
    data = of_zoo("cnn", 16)
    x = data.example().args[0]
    seen: dict[str, Tensor] = {}
    handle = teacher.blocks[1].register_forward_hook(lambda module, inputs, output: seen.update(teacher=output))
    teacher(x)
    handle.remove()
    expected = attention_distance(student.stage(x), nn.functional.adaptive_avg_pool2d(seen["teacher"], 6)).mean().item()
    reported = taught(Attention(layers=("stage=blocks.1",), steps=1, alpha=0.5, weight="published"), student, context(data, teacher))[0]
    assert reported["attention"] == pytest.approx(expected, rel=1e-5)
    assert reported["loss"] == pytest.approx(0.5 * reported["label"] + 0.5 * 1000 * expected, rel=1e-5)


def test_vectors_have_no_places_and_that_is_reported_before_training() -> None:
    with pytest.raises(KdError, match="compares places"):
        fit(zoo.mlp(), [Attention(steps=1)], context(of_zoo("mlp"), zoo.mlp()))


def test_the_form_is_an_option() -> None:
    reported = {form: taught(Attention(form=form, steps=1, layers=("blocks.1",)), zoo.cnn(), context(of_zoo("cnn", 16), zoo.cnn()))[0] for form in ("code", "paper")}
    assert reported["paper"]["attention"] > reported["code"]["attention"]


@pytest.mark.slow
def test_features_that_are_as_strong_at_every_place_are_refused() -> None:
    fresh = zoo.tiny_bert()
    names = ("bert.encoder.layer.0", "bert.encoder.layer.1")
    with pytest.raises(KdError, match="the same magnitude at every place"):
        fit(zoo.tiny_bert(), [Attention(layers=names, steps=1)], context(of_zoo("tiny_bert"), fresh))
