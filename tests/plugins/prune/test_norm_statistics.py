"""BatchNorm statistics are estimated again from data, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdkit.data import Batch
from kdkit.models import private_copy
from kdkit_prune.norm_statistics import reestimate
from tests.fixtures import zoo


def batches(count: int = 3, items: int = 8) -> list[Batch]:
    random = torch.Generator().manual_seed(0)
    return [Batch((torch.randn(items, 3, 12, 12, generator=random) * 2 + 1,)) for _ in range(count)]


def test_the_statistics_are_the_means_over_the_batches():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    assert reestimate(net, batches()) == 1
    outputs = [net[0](batch.args[0]).detach() for batch in batches()]
    torch.testing.assert_close(net[1].running_mean, torch.stack([output.mean((0, 2, 3)) for output in outputs]).mean(0))
    torch.testing.assert_close(net[1].running_var, torch.stack([output.transpose(0, 1).flatten(1).var(1) for output in outputs]).mean(0))


def test_only_the_statistics_change():
    net = zoo.cnn()
    net.blocks[0].bn1.momentum, net.blocks[0].bn1.num_batches_tracked = 0.3, torch.tensor(77)
    net.blocks[1].train()
    before, modes = private_copy(net), [module.training for module in net.modules()]
    assert reestimate(net, batches()) == 5
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before.state_dict()[name])}
    assert changed
    assert {name.rpartition(".")[2] for name in changed} == {"running_mean", "running_var"}
    assert [module.training for module in net.modules()] == modes
    assert net.blocks[0].bn1.momentum == 0.3


def test_dropout_stays_off():
    net = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3))
    reestimate(net, batches())
    torch.testing.assert_close(net[1].running_mean, torch.stack([batch.args[0].mean((0, 2, 3)) for batch in batches()]).mean(0))


def test_a_norm_that_no_batch_reaches_keeps_its_statistics():
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.used(x)

    net = Partly()
    net.unused.running_mean.fill_(5.0)
    assert reestimate(net, batches()) == 1
    assert net.unused.running_mean.tolist() == [5.0] * 3


@pytest.mark.parametrize("data", [[], batches(2, items=1)])
def test_without_a_batch_of_several_items_nothing_changes(data):
    net = zoo.cnn()
    before = private_copy(net).state_dict()
    assert reestimate(net, data) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_an_interrupt_restores_the_statistics_of_norms_that_no_batch_reached_and_all_modes():
    net = zoo.cnn()

    def broken():
        raise KeyboardInterrupt
        yield

    before = private_copy(net).state_dict()
    with pytest.raises(KeyboardInterrupt):
        reestimate(net, broken())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not net.bn.training
    assert net.bn.momentum == 0.1
