"""decompose winograd: the formula of the paper for one tile, all sizes, the number of multiply-adds, and the stage."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.measurement import count_macs
from kdkit.stages.validation import validate_stage
from kdkit_decompose import winograd
from kdkit_decompose.winograd import Winograd, WinogradConvolution, transform_weight
from tests.fixtures import zoo
from tests.fixtures.decomposition import convolution, parameters, run_stage


def test_the_stage_is_valid():
    assert list(validate_stage(Winograd)) == []


def test_a_tile_is_computed_as_in_the_paper():
    random = numpy.random.default_rng(0)
    g, d = random.normal(size=(3, 3)), random.normal(size=(4, 4))
    G = numpy.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    B = numpy.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
    A = numpy.array([[1, 1, 1, 0], [0, 1, -1, -1]])
    expected = A @ ((G @ g @ G.T) * (B @ d @ B.T)) @ A.T
    layer = WinogradConvolution(1, 1, (0, 0), bias=False).double()
    layer.weight.data = transform_weight(torch.tensor(g)[None, None])
    numpy.testing.assert_allclose(layer(torch.tensor(d)[None, None])[0, 0].detach().numpy(), expected)
    direct = nn.functional.conv2d(torch.tensor(d)[None, None], torch.tensor(g)[None, None])[0, 0].numpy()
    numpy.testing.assert_allclose(expected, direct)


@given(some.integers(3, 9), some.integers(3, 9), some.sampled_from([0, 1, (2, 0), "same", "valid"]), some.booleans())
@settings(max_examples=40, deadline=None)
def test_it_gives_what_the_convolution_gives_for_all_sizes(height, width, padding, bias):
    layer, x = convolution(4, 6, padding=padding, bias=bias), torch.randn(2, 4, height, width)
    torch.testing.assert_close(WinogradConvolution.of(layer)(x), layer(x), atol=1e-5, rtol=1e-4)


def test_the_multiply_adds_are_4_of_9_and_the_weights_16_of_9():
    layer, batch = convolution(8, 8, padding=1, bias=False), Batch((torch.randn(2, 8, 12, 12),))
    made = WinogradConvolution.of(layer)
    assert count_macs(made, batch) * 9 == count_macs(layer, batch) * 4
    assert parameters(made) * 9 == parameters(layer) * 16


def test_it_trains_like_the_convolution():
    layer, x = convolution(3, 4), torch.randn(2, 3, 6, 6, requires_grad=True)
    made = WinogradConvolution.of(layer)
    gradients = [torch.autograd.grad(each(x).square().sum(), (x, each.bias)) for each in (layer, made)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_a_net_gives_the_same_and_other_kernels_are_left_alone():
    net = nn.Sequential(
        convolution(3, 8, padding=1), nn.ReLU(), convolution(8, 8, stride=2), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
    ).eval()
    batch = Batch((torch.randn(2, 3, 12, 12),))
    made, notes = run_stage(Winograd(), net, batch)
    torch.testing.assert_close(batch.call(made), batch.call(net), atol=1e-5, rtol=1e-4)
    assert [type(layer) for layer in made] == [WinogradConvolution, nn.ReLU, nn.Conv2d, nn.Conv2d, nn.Conv2d]
    assert notes[:3] == ["skipped 2: it has a stride or a dilation", "skipped 3: its kernel is not 3x3", "skipped 4: its padding is reflect"]


def test_the_measured_time_is_in_a_note(monkeypatch):
    monkeypatch.setattr(winograd, "slowdowns", lambda found, inputs: ((name, factor) for name, factor in zip(found, (2.0, 8.0, 0.0, 0.0, 0.0), strict=True)))
    _, notes = run_stage(Winograd(), zoo.cnn(), zoo.batch("cnn"))
    assert "on this machine the layers take 4.0 times as long as with the library's kernels, which know this method too" in notes


def test_a_net_without_kernels_of_3x3_says_so():
    with pytest.raises(KdError, match="none of the layers can be decomposed") as caught:
        run_stage(Winograd(), nn.Sequential(nn.Conv2d(3, 4, 5)), Batch((torch.randn(2, 3, 8, 8),)))
    assert caught.value.hints == ("0: its kernel is not 3x3",)
