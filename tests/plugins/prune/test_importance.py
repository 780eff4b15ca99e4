"""Importance scores against naive formulas, and the selection of units."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdkit.data import Batch
from kdkit.tasks import Classification
from kdkit_prune import importance
from kdkit_prune.groups import Group, NotPrunable, Part, axis_of, cut, part, weights_of, zero_units
from kdkit_prune.selection import ratios, removable, select, smallest

UNITS = 6


def small() -> tuple[nn.Module, Group]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, UNITS, 3), nn.BatchNorm2d(UNITS), nn.ReLU(), nn.Flatten(), nn.Linear(UNITS * 4, 5)).eval()
    net[1].weight.data.uniform_(-1, 1)
    owner = torch.arange(UNITS)
    return net, Group("0", "channels", UNITS, (part(net, "0", "out", owner), part(net, "1", "out", owner), part(net, "4", "in", owner.repeat_interleave(4))))


def naive_weights(net: nn.Module, unit: int) -> list[float]:
    return net[0].weight[unit].flatten().tolist() + net[4].weight[:, 4 * unit : 4 * unit + 4].flatten().tolist()


def test_the_weights_of_a_unit_are_those_that_write_it_and_those_that_read_it():
    net, group = small()
    rows = weights_of(net, group)
    assert rows.shape == (UNITS, 27 + 20)
    for unit in range(UNITS):
        assert sorted(rows[unit].tolist()) == sorted(naive_weights(net, unit))


def test_magnitudes_are_their_formulas():
    net, group = small()
    rows, naive = weights_of(net, group), [naive_weights(net, unit) for unit in range(UNITS)]
    squares = [sum(w * w for w in row) for row in naive]
    torch.testing.assert_close(importance.l1(rows), torch.tensor([sum(abs(w) for w in row) for row in naive]))
    torch.testing.assert_close(importance.l2(rows), torch.tensor([math.sqrt(square) for square in squares]))
    torch.testing.assert_close(importance.lamp(rows), torch.tensor([square / sum(other for other in squares if other >= square) for square in squares]))
    far = [sum(math.dist(row.tolist(), other.tolist()) for other in rows) for row in rows]
    torch.testing.assert_close(importance.fpgm(rows), torch.tensor(far), atol=1e-4, rtol=1e-4)


def test_bn_scale_is_the_absolute_scale_behind_the_unit():
    net, group = small()
    torch.testing.assert_close(importance.bn_scale(net, group), net[1].weight.detach().abs())
    assert importance.bn_scale(net, Group("0", "channels", UNITS, group.parts[:1])) is None


def test_taylor_is_the_squared_change_of_the_loss_averaged_over_batches():
    net, group = small()
    batches = [Batch((torch.randn(4, 3, 4, 4),), labels=torch.tensor([0, 1, 2, 3])) for _ in range(2)]
    expected = torch.zeros(UNITS)
    for batch in batches:
        net.zero_grad()
        nn.functional.cross_entropy(net(*batch.args), batch.labels).backward()
        for unit in range(UNITS):
            first = (net[0].weight[unit] * net[0].weight.grad[unit]).sum()
            last = (net[4].weight * net[4].weight.grad)[:, 4 * unit : 4 * unit + 4].sum()
            expected[unit] += (first + last).item() ** 2 / 2
    net.zero_grad()
    (scores,), loss = importance.taylor(net, [group], batches, Classification())
    torch.testing.assert_close(scores, expected, atol=1e-7, rtol=1e-3)
    assert loss == pytest.approx(sum(float(nn.functional.cross_entropy(net(*batch.args), batch.labels).detach()) for batch in batches) / 2)
    assert all(weight.grad is None for weight in net.parameters())


def test_cutting_is_the_same_as_silencing():
    net, group = small()
    other, _ = small()
    gone, x = torch.tensor([True, False, False, True, False, True]), torch.randn(2, 3, 4, 4)
    cut(net, [group], [gone])
    zero_units(other, [group], [gone])
    assert (net[0].out_channels, net[1].num_features, net[4].in_features) == (3, 3, 12)
    torch.testing.assert_close(net(x), other(x))


def test_tied_weights_stay_tied_when_cut():
    net = nn.ModuleDict({"embed": nn.Embedding(10, 4), "head": nn.Linear(4, 10, bias=False)})
    net["head"].weight = net["embed"].weight
    owner = torch.arange(4)
    group = Group("embed", "hidden", 4, (part(net, "embed", "out", owner), part(net, "head", "in", owner)))
    cut(net, [group], [torch.tensor([True, False, False, False])])
    assert net["head"].weight is net["embed"].weight
    assert (net["embed"].embedding_dim, net["head"].in_features) == (3, 3)


def test_a_kind_of_module_that_can_not_be_cut_says_so():
    with pytest.raises(NotPrunable, match="LSTM is left alone"):
        axis_of(nn.LSTM(2, 2), "out")


GROUPS = st.builds(
    lambda steps, bundles, width: Group("g", "channels", steps * bundles, (), width=width, bundles=bundles), st.integers(1, 40), st.integers(1, 4), st.integers(1, 4)
)


@given(GROUPS, st.floats(0.01, 0.99), st.sampled_from([1, 2, 4, 8, 16]))
def test_what_stays_is_at_least_what_was_asked_never_nothing_and_a_multiple(group, ratio, round_to):
    asked = int(group.steps * ratio + 1e-9)
    gone = removable(group, asked, round_to)
    assert 0 <= gone <= asked
    assert group.steps - gone >= 1
    if gone:
        assert (group.steps - gone) * group.width * group.bundles % round_to == 0


@pytest.mark.slow
@given(st.lists(GROUPS, min_size=1, max_size=4), st.floats(0.01, 0.99), st.sampled_from(["layer", "global"]))
def test_a_larger_ratio_removes_all_that_a_smaller_one_does(groups, ratio, scope):
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(group.units, generator=generator) for group in groups]
    less, more = (select(groups, scores, each, scope, 1) for each in (ratio / 2, ratio))
    for group, few, many in zip(groups, less, more, strict=True):
        assert bool((few <= many).all())
        assert len(set(many.reshape(group.bundles, -1).sum(1).tolist())) == 1


def test_the_least_important_go_and_globally_over_all_layers():
    groups = [Group("a", "channels", 4, ()), Group("b", "channels", 4, ()), Group("c", "heads", 2, ())]
    scores = [torch.tensor([4.0, 1.0, 3.0, 2.0]), torch.tensor([8.0, 7.0, 6.0, 5.0]), torch.tensor([0.0, 1.0])]
    assert [gone.tolist() for gone in select(groups, scores, 0.5, "layer", 1)] == [[False, True, False, True], [False, False, True, True], [True, False]]
    assert [gone.tolist() for gone in select(groups, scores, 0.5, "global", 1)] == [[False, True, True, True], [False, False, False, True], [True, False]]


def test_ratios_are_those_at_which_something_changes():
    assert ratios([Group("a", "channels", 4, ()), Group("b", "heads", 2, ())], "layer") == [0.25, 0.5, 0.75]
    assert smallest([0.25, 0.5], lambda ratio: False) is None


def test_a_grouped_convolution_keeps_its_groups_alike():
    conv = nn.Sequential(nn.Conv2d(8, 8, 1, groups=2))
    owner = torch.arange(8) % 4
    both = Group("0", "channels", 4, (Part("0", axis_of(conv[0], "in"), owner), Part("0", axis_of(conv[0], "out"), owner)), width=2)
    cut(conv, [both], [torch.tensor([False, True, True, False])])
    assert (conv[0].in_channels, conv[0].out_channels, tuple(conv[0].weight.shape)) == (4, 4, (4, 2, 1, 1))
    assert conv(torch.randn(1, 4, 2, 2)).shape == (1, 4, 2, 2)
