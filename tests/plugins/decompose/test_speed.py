"""The guard: a layer whose replacement is slower on this machine is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import Regression
from kdkit_decompose import speed
from kdkit_decompose.speed import capture_inputs, slowdowns
from kdkit_decompose.svd import Svd


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


BATCH = Batch((torch.randn(2, 32, 16, 16),))


def about() -> Context:
    return Context(task=Regression(), objects={"example": adopt_data([BATCH])})


def test_the_first_inputs_of_layers_are_captured_and_no_hook_remains():
    model = net()
    inputs = capture_inputs(model, [model[2], model[5]], BATCH)
    assert (inputs[model[2]].shape, inputs[model[5]].shape) == ((2, 32, 16, 16), (2, 64))
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_what_does_far_more_is_slower_and_far_less_is_faster():
    layer, x = nn.Conv2d(64, 64, 3, padding=1), torch.randn(1, 64, 32, 32)
    more, less = nn.Sequential(layer, layer, layer), nn.Conv2d(64, 64, 1)
    found = dict(slowdowns({"more": (layer, more), "less": (layer, less)}, {layer: x}))
    assert found["more"] > 1.5
    assert found["less"] < 0.8


def test_small_layers_are_not_timed(monkeypatch):
    monkeypatch.setattr(speed, "_slowdown", None)
    layer = nn.Linear(64, 64)
    assert dict(slowdowns({"small": (layer, nn.Sequential(layer, layer)), "absent": (layer, layer)}, {layer: torch.randn(8, 64)})) == {"small": 0.0, "absent": 0.0}


def test_the_multiply_adds_of_a_call_are_counted():
    from kdkit.measurement import count_macs

    for layer, x in (
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), torch.randn(2, 4, 9, 9)),
        (nn.Linear(5, 7), torch.randn(2, 3, 5)),
        (nn.Conv1d(4, 6, 5), torch.randn(2, 4, 20)),
    ):
        assert speed._multiply_adds(layer, x) == count_macs(layer, Batch((x,)))


@pytest.fixture
def slow_first_layer(monkeypatch):
    """As if the machine were slow with the factors of the first layer."""
    monkeypatch.setattr(speed, "_slowdown", lambda layer, replacement, inputs: 1.6 if layer.out_channels == 32 else 0.7)


@pytest.mark.usefixtures("slow_first_layer")
def test_a_layer_that_would_be_slower_is_left_alone_and_named():
    context = about()
    small = Svd(form="channel").apply(net(), context)
    assert [type(layer) for layer in (small[0], small[2])] == [nn.Conv2d, nn.Sequential]
    assert "skipped 0: rank 14 takes 1.6 times as long here" in context.notes
    assert [weight.shape for weight in Svd(form="channel").forecast(net(), about()).model.parameters()] == [weight.shape for weight in small.parameters()]


@pytest.mark.usefixtures("slow_first_layer")
def test_without_the_guard_it_is_decomposed_for_its_size():
    assert type(Svd(guard=False).apply(net(), about())[0]) is nn.Sequential


@pytest.mark.usefixtures("slow_first_layer")
def test_nothing_that_would_be_faster_is_an_error_with_a_way_out():
    with pytest.raises(KdError, match="would make every layer slower on this machine") as caught:
        Svd(layers=("0",)).apply(net(), about())
    assert "--no-guard decomposes for size alone" in caught.value.hints
