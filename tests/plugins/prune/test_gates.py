"""Importances from data equal their formulas, written out with a gate on each unit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models import private_copy
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import Classification
from kdkit_prune import gates
from kdkit_prune.channels import Channels
from kdkit_prune.convolutional import anatomy
from kdkit_prune.groups import Group, part
from tests.fixtures import zoo

UNITS = 6
TASK = Classification()


def small() -> tuple[nn.Sequential, Group]:
    """A convolution whose units a linear layer reads, each at four positions."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, UNITS, 3), nn.BatchNorm2d(UNITS), nn.ReLU(), nn.Flatten(), nn.Linear(UNITS * 4, 5)).eval()
    net[1].bias.data.uniform_(-1, 1)
    owner = torch.arange(UNITS)
    return net, Group("0", "channels", UNITS, (part(net, "0", "out", owner), part(net, "1", "out", owner), part(net, "4", "in", owner.repeat_interleave(4))))


def images(items: int = 5) -> Tensor:
    return torch.randn(items, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def repeated(batch: Batch, times: int = 1000) -> list[Batch]:
    """The same batch many times, so that random directions average out."""
    return [batch] * times


def test_first_order_is_the_squared_change_of_all_outputs_by_a_gate_for_each_item():
    net, group = small()
    (scores,) = gates.first_order(net, [group], repeated(Batch((images(),))), TASK)

    def outputs(gate: Tensor) -> Tensor:
        return net[4]((net[:3](images()) * gate[:, None, None]).flatten(1))

    exact = torch.autograd.functional.jacobian(outputs, torch.ones(UNITS))
    torch.testing.assert_close(scores, exact.pow(2).sum(1).mean(0), rtol=0.2, atol=1e-4)


def test_a_unit_of_a_residual_stream_has_one_gate_for_all_its_readers():
    net, batch = zoo.cnn(), zoo.batch("cnn")
    found = anatomy(net, batch)
    stream = next(group for group in found.groups if "stem" in group.writers)
    torch.manual_seed(3)
    (scores,) = gates.first_order(net, [stream], [batch], TASK)
    readers = [net.blocks[0].conv1, net.blocks[1].conv1, net.head]
    gate = torch.ones(batch.size, 16, requires_grad=True)
    hooks = [reader.register_forward_pre_hook(lambda layer, args: args[0] * (gate[..., None, None] if args[0].dim() == 4 else gate)) for reader in readers]
    torch.manual_seed(3)
    output = batch.call(net)
    signs = (torch.rand_like(output) < 0.5) * 2.0 - 1.0
    (slope,) = torch.autograd.grad((signs * output).sum(), gate)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(scores, slope.pow(2).mean(0))


def test_curvature_is_half_the_squared_weights_times_the_squared_jacobian():
    net, group = small()
    (scores,) = gates.curvature(net, [group], repeated(Batch((images(),))), TASK)
    expected = torch.zeros(UNITS)
    for item in images():
        for output in net(item[None])[0]:
            slopes = torch.autograd.grad(output, [net[0].weight, net[4].weight], retain_graph=True)
            expected += (slopes[0] * net[0].weight).pow(2).sum((1, 2, 3)) / 2
            expected += (slopes[1] * net[4].weight).pow(2).reshape(5, UNITS, 4).sum((0, 2)) / 2
    torch.testing.assert_close(scores, expected.detach() / 5, rtol=0.2, atol=1e-4)


def test_activity_is_one_less_the_average_percentage_of_zeros():
    net, group = small()
    (scores,) = gates.activity(net, [group], [Batch((images()[:2],)), Batch((images()[2:],))], TASK)
    torch.testing.assert_close(scores, (net[:3](images()) != 0).float().mean((0, 2, 3)))


def test_activity_has_no_score_where_no_activation_is_zero():
    net, group = small()
    net[2] = nn.Sigmoid()
    assert gates.activity(net, [group], [Batch((images(),))], TASK) == [None]


def test_tokens_that_a_layer_reads_flattened_count_for_their_items():
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.write, self.read = nn.Linear(4, UNITS), nn.Linear(UNITS, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.read(torch.relu(self.write(x)).flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)

    torch.manual_seed(0)
    net, x = Flat().eval(), torch.randn(4, 7, 4)
    group = Group("write", "channels", UNITS, (part(net, "write", "out", torch.arange(UNITS)), part(net, "read", "in", torch.arange(UNITS))))
    (scores,) = gates.first_order(net, [group], repeated(Batch((x,)), 500), TASK)
    exact = torch.autograd.functional.jacobian(lambda gate: net.read(torch.relu(net.write(x)) * gate).mean(1), torch.ones(UNITS))
    torch.testing.assert_close(scores, exact.pow(2).sum(1).mean(0), rtol=0.2, atol=1e-4)


@pytest.mark.parametrize("score", [gates.first_order, gates.curvature, gates.activity])
def test_no_batch_is_refused_and_the_model_is_left_as_it_was(score):
    net, group = small()
    net[4].weight.requires_grad_(False)
    with pytest.raises(KdError, match="got no batch"):
        score(net, [group], [], TASK)
    score(net, [group], [Batch((images(),))], TASK)
    assert not net[4].weight.requires_grad
    assert all(weight.grad is None for weight in net.parameters())
    assert not any(module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("score", [gates.first_order, gates.curvature])
def test_outputs_that_are_not_finite_are_refused(score):
    net, group = small()
    with pytest.raises(KdError, match="hold infinities or NaN"):
        score(net, [group], [Batch((images() * float("inf"),))], TASK)


# in the stage ----------------------------------------------------------------------------------------------------------


def context(batch: Batch, name: str = "calibration") -> Context:
    return Context(task=TASK, objects={name: adopt_data([batch])})


@pytest.mark.parametrize("importance", ["first-order", "hessian"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "tiny_bert"])
def test_the_stage_prunes_by_each_without_labels(importance, name):
    net, batch = zoo.MODELS[name](), zoo.batch(name)
    bare = Batch(batch.args, batch.kwargs)
    pruned = Channels(importance=importance, scope="global").apply(zoo.MODELS[name](), context(bare))
    assert sum(weight.numel() for weight in pruned.parameters()) < sum(weight.numel() for weight in net.parameters())
    assert Channels(importance=importance).required_inputs().calibration


def test_units_without_zeros_are_left_alone_and_named():
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4)).eval()
    about = context(Batch((torch.randn(32, 8),)))
    pruned = Channels(importance="activation").apply(net, about)
    assert (pruned[0].out_features, pruned[2].out_features) == (8, 16)
    assert any("none of its activations is ever zero" in note for note in about.notes)


def test_units_that_never_act_go_first():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    net[0].bias.data[[2, 5, 11, 12]] = -100
    kept = net[0].bias.detach().clone()
    for importance in ("first-order", "activation", "hessian"):
        pruned = Channels(importance=importance, ratio=0.25).apply(private_copy(net), context(Batch((torch.randn(64, 8),))))
        assert sorted(pruned[0].bias.tolist()) == sorted(kept[kept > -50].tolist())


def test_taylor_warns_where_the_loss_has_been_learned_by_heart():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = torch.randn(32, 8)
    labels = net(x).argmax(1)
    for scale, warned in ((1.0, False), (1e4, True)):
        sharp = private_copy(net)
        sharp[2].weight.data *= scale
        sharp[2].bias.data *= scale
        about = context(Batch((x,), labels=labels), "train")
        Channels(importance="taylor").apply(sharp, about)
        assert any("learned this data by heart" in note for note in about.notes) == warned
