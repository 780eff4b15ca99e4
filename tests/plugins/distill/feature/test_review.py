"""distill review: the hierarchical distance and the fusions against the authors' code, written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.errors import KdError
from kdkit.training import fit
from kdkit_distill.feature.review import Fusion, Review, Reviewer, hierarchical_distance
from tests.fixtures import zoo
from tests.fixtures.lessons import context, numbers, of_zoo, taught


def hcl_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """As the authors' code has it, for one pair."""
    height = student.shape[2]
    loss = F.mse_loss(student, teacher, reduction="mean")
    cnt = tot = 1.0
    for size in [4, 2, 1]:
        if size >= height:
            continue
        pooled = [F.adaptive_avg_pool2d(each, (size, size)) for each in (student, teacher)]
        cnt /= 2.0
        loss = loss + F.mse_loss(*pooled, reduction="mean") * cnt
        tot += cnt
    return loss / tot


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8])
def test_its_mean_is_what_the_authors_code_gives(size: int) -> None:
    student, teacher = numbers(4, 3, size, size), numbers(4, 3, size, size, seed=1)
    assert hierarchical_distance(student, teacher).mean().item() == pytest.approx(hcl_loss(student, teacher).item(), rel=1e-12)


def test_an_items_value_is_its_own() -> None:
    student, teacher = numbers(4, 3, 8, 8), numbers(4, 3, 8, 8, seed=1)
    whole = hierarchical_distance(student, teacher)
    assert torch.allclose(whole, torch.cat([hierarchical_distance(student[row : row + 1], teacher[row : row + 1]) for row in range(4)]))


def test_equal_maps_cost_nothing() -> None:
    student = numbers(2, 3, 8, 8).requires_grad_()
    loss = hierarchical_distance(student, student.detach().clone())
    loss.sum().backward()
    assert (loss == 0).all()
    assert (student.grad == 0).all()


def test_a_fusion_is_the_sum_weighted_a_place() -> None:
    torch.manual_seed(0)
    made = Fusion(4, 5, 6, True).double()
    student, deeper = numbers(2, 4, 6, 6), numbers(2, 5, 3, 3, seed=1)
    out, inner = made(student, deeper)
    x = F.conv2d(student, made.enter.weight, made.enter.bias)
    y = deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    z = torch.sigmoid(F.conv2d(torch.cat([x, y], 1), made.weigh.weight, made.weigh.bias))
    expected = x * z[:, 0].view(2, 1, 6, 6) + y * z[:, 1].view(2, 1, 6, 6)
    assert torch.allclose(inner, expected)
    assert torch.allclose(out, F.conv2d(expected, made.leave.weight, made.leave.bias, padding=1))


def test_the_deepest_map_reaches_the_shallowest_and_not_the_other_way() -> None:
    made = Reviewer([(4, 8), (6, 9)]).double()
    shallow, deep = numbers(2, 4, 6, 6).requires_grad_(), numbers(2, 6, 3, 3, seed=1).requires_grad_()
    out = made([shallow, deep])
    assert [tuple(each.shape) for each in out] == [(2, 8, 6, 6), (2, 9, 3, 3)]
    assert torch.autograd.grad(out[0].sum(), deep, retain_graph=True)[0].abs().sum() > 0
    assert torch.autograd.grad(out[1].sum(), shallow, allow_unused=True)[0] is None


@pytest.mark.parametrize("name", ["tiny_bert", "mlp"])
def test_nets_without_maps_are_refused(name: str) -> None:
    with pytest.raises(KdError, match="fuses maps"):
        fit(zoo.MODELS[name](), [Review(steps=1)], context(of_zoo(name), zoo.MODELS[name]()))


def test_one_pair_is_enough() -> None:
    reported = taught(Review(steps=2, count=1, labels=False), zoo.depthwise(), context(of_zoo("cnn"), zoo.cnn()))
    assert set(reported[0]) >= {"review"}
