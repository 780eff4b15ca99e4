"""Bottlenecks: the published numbers of parameters, the formulas, and what surrounds a layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdkit_peft.bottleneck import Bottleneck, adapt, widths


def trained(made):
    """With an adapter that does something."""
    nn.init.normal_(made.adapter.up.weight)
    nn.init.normal_(made.adapter.up.bias)
    return made


@pytest.mark.parametrize(("width", "places", "expected"), [(48, 24, 1_789_056), (48, 12, 894_528), (64, 24, 2_379_264), (64, 12, 1_189_632)])
def test_bert_base_has_the_published_number_of_parameters(width, places, expected):
    assert places * sum(weight.numel() for weight in Bottleneck(768, width, 768, "relu").parameters()) == expected


@pytest.mark.parametrize("parallel", [False, True])
def test_the_output_starts_unchanged_and_then_has_the_formula(parallel):
    layer, x = nn.Linear(6, 8), torch.randn(2, 5, 6)
    made = adapt(layer, 3, "gelu", parallel, scale=0.5)
    assert torch.equal(made(x), layer(x))
    adapter = trained(made).adapter
    y = layer(x)
    source, factor = (x, 0.5) if parallel else (y, 1.0)
    expected = y + factor * (nn.functional.gelu(source @ adapter.down.weight.T + adapter.down.bias) @ adapter.up.weight.T + adapter.up.bias)
    torch.testing.assert_close(made(x), expected)


def test_a_convolution_has_it_at_each_position():
    layer, x = nn.Conv2d(3, 8, 3, stride=2), torch.randn(2, 3, 9, 9)
    made = trained(adapt(layer, 4, "relu", parallel=False, scale=1.0))
    y = layer(x)
    expected = y + made.adapter(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(made(x), expected)


def test_a_transposed_linear_layer_has_its_own_widths():
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(12, 4)
    assert widths(layer) == (4, 12)
    assert adapt(layer, 2, "relu", parallel=True, scale=1.0)(torch.randn(3, 4)).shape == (3, 12)


def test_a_half_layer_keeps_half_outputs_and_a_float_adapter():
    made = adapt(nn.Linear(4, 4).to(torch.bfloat16), 2, "relu", parallel=False, scale=1.0)
    assert made.adapter.up.weight.dtype == torch.float32
    assert made(torch.randn(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_copy_shares_nothing():
    made = adapt(nn.Linear(4, 4), 2, "relu", parallel=False, scale=1.0)
    twin = copy.deepcopy(made)
    trained(twin)
    assert not made.adapter.up.weight.any()
