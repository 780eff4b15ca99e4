"""prune neurons: what is provably dead goes, nothing else, and the outputs stay the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdkit import Session
from kdkit.data import Batch
from kdkit.models import private_copy
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import Classification
from kdkit_prune.neurons import Neurons
from tests.fixtures import zoo


def prune(model: nn.Module, batch: Batch, **options) -> tuple[nn.Module, list[str]]:
    about = Context(Classification(), objects={"example": adopt_data([batch])})
    return Neurons(**options).apply(private_copy(model), about), about.notes


def output(model: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        given = batch.call(model)
    return given if isinstance(given, Tensor) else given.logits


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 3)).eval()


ROWS = Batch((torch.randn(16, 6, generator=torch.Generator().manual_seed(1)),))


def test_units_that_no_layer_reads_go():
    net = mlp()
    net[2].weight.data[:, [1, 4, 5]] = 0
    pruned, notes = prune(net, ROWS)
    assert (pruned[0].out_features, pruned[2].out_features) == (5, 10)
    assert notes == ["0: 3 dead units removed"]
    torch.testing.assert_close(output(pruned, ROWS), output(net, ROWS))


def test_units_that_are_always_zero_go_and_those_with_another_constant_stay():
    net = mlp()
    net[0].weight.data[[0, 2, 3]] = 0
    net[0].bias.data[[0, 2, 3]] = torch.tensor([-1.0, 0.0, 1.0])
    pruned, _ = prune(net, ROWS)
    assert pruned[0].out_features == 6
    assert 1.0 in pruned[0].bias.tolist()
    torch.testing.assert_close(output(pruned, ROWS), output(net, ROWS))


def test_units_that_are_zero_on_the_example_only_stay():
    net = mlp()
    net[0].bias.data[3] = -50.0
    assert bool((net[1](net[0](ROWS.args[0]))[:, 3] == 0).all())
    pruned, notes = prune(net, ROWS)
    assert pruned[0].out_features == 8
    assert notes == ["no unit is dead"]


def test_units_that_die_when_others_go_follow():
    net = mlp()
    net[4].weight.data[:, 3] = 0
    net[2].weight.data[:, 5] = 0
    net[2].weight.data[3, 5] = 1.0
    pruned, _ = prune(net, ROWS)
    assert (pruned[0].out_features, pruned[2].out_features) == (7, 9)
    torch.testing.assert_close(output(pruned, ROWS), output(net, ROWS))


def test_channels_whose_batch_norm_scale_and_shift_are_zero_go():
    net, batch = zoo.cnn(), zoo.batch("cnn")
    net.blocks[0].bn1.weight.data[:5] = 0
    net.blocks[0].bn1.bias.data[:5] = torch.tensor([0.0, -0.5, -1.0, 0.0, 0.3])
    pruned, _ = prune(net, batch)
    assert pruned.blocks[0].conv1.out_channels == 12
    assert pruned.stem.out_channels == 16
    torch.testing.assert_close(output(pruned, batch), output(net, batch), atol=1e-5, rtol=1e-5)


def test_a_channel_of_a_residual_stream_goes_only_where_no_layer_reads_it():
    net, batch = zoo.cnn(), zoo.batch("cnn")
    for layer in (net.blocks[0].conv1, net.blocks[1].conv1):
        layer.weight.data[:, [2, 7]] = 0
    net.head.weight.data[:, 2] = 0
    pruned, _ = prune(net, batch)
    assert pruned.stem.out_channels == 15
    torch.testing.assert_close(output(pruned, batch), output(net, batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama"])
def test_heads_and_feed_forward_neurons_of_transformers_go(name):
    net, batch = zoo.MODELS[name](), zoo.batch(name)
    layer = net.bert.encoder.layer[0].output.dense if name == "tiny_bert" else net.model.layers[0].mlp.down_proj
    layer.weight.data[:, :3] = 0
    pruned, notes = prune(net, batch)
    assert any("3 dead units removed" in note for note in notes)
    torch.testing.assert_close(output(pruned, batch), output(net, batch), atol=1e-5, rtol=1e-5)


def test_layers_of_skip_keep_their_units():
    net = mlp()
    net[2].weight.data[:, [1, 4]] = 0
    net[4].weight.data[:, [2]] = 0
    pruned, _ = prune(net, ROWS, skip=("0",))
    assert (pruned[0].out_features, pruned[2].out_features) == (8, 9)


def test_one_unit_stays_where_all_are_dead():
    net = mlp()
    net[2].weight.data[:] = 0
    pruned, _ = prune(net, ROWS)
    assert pruned[0].out_features == 1
    torch.testing.assert_close(output(pruned, ROWS), output(net, ROWS))


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 0.97), st.integers(0, 99))
def test_the_outputs_stay_the_same_whatever_is_zero(share, seed):
    net, random = mlp(), torch.Generator().manual_seed(seed)
    for layer in (net[0], net[2], net[4]):
        layer.weight.data[torch.rand(layer.weight.shape, generator=random) < share] = 0
        layer.bias.data[torch.rand(layer.bias.shape, generator=random) < share] = 0
    pruned, _ = prune(net, ROWS)
    x = Batch((torch.randn(64, 6, generator=random) * 10,))
    torch.testing.assert_close(output(pruned, x), output(net, x), atol=1e-4, rtol=1e-4)


def test_after_weights_were_pruned_to_the_extreme_it_makes_the_model_smaller():
    work = Session(mlp(), train=(ROWS.args[0], torch.arange(16) % 3), measures=("size",))
    work.run("prune weights --ratio 0.9")
    work.run("prune fold")
    expected = work.head.model(ROWS.args[0])
    work.run("prune neurons")
    assert work.head.model[0].out_features < 8
    torch.testing.assert_close(work.head.model(ROWS.args[0]), expected, atol=1e-5, rtol=1e-5)
