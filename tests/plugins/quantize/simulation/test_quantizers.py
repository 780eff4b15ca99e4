"""Fake quantization: values and gradients, against the formulas of the papers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdkit.models.traits import Trait, traits_of
from kdkit_quantize.arithmetic import Grid, dequantize, quantize
from kdkit_quantize.simulation.quantizers import ActivationQuantizer, WeightQuantizer, best_scale, fake_quantize, folding


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20), st.floats(0.0625, 4, width=32), st.integers(2, 8), st.integers(0, 3))
@settings(deadline=None)
def test_values_are_those_of_integers_and_back(values, scale, bits, zero):
    grid = Grid(bits)
    found = fake_quantize(torch.tensor(values), torch.tensor(scale), grid.lowest - zero, grid.highest - zero)
    assert np.array_equal(found.numpy(), dequantize(quantize(values, scale, zero, grid), scale, zero))


@given(st.floats(-20, 20, width=32), st.floats(0.125, 4, width=32))
@settings(deadline=None)
def test_gradients_are_those_of_learned_step_size_quantization(value, step):
    """Esser et al., equations 3 and 5, with Q_N = 4 and Q_P = 7."""
    x, scale = torch.tensor(value, requires_grad=True), torch.tensor(step, requires_grad=True)
    fake_quantize(x, scale, -4, 7).backward()
    ratio = value / step
    if -4 < ratio < 7:
        wanted, passed = -ratio + round(ratio), 1.0
    else:
        wanted, passed = (-4.0, 0.0) if ratio < -4 else (7.0, 0.0)
    if abs(ratio + 4) > 1e-6 and abs(ratio - 7) > 1e-6:
        assert float(scale.grad) == pytest.approx(wanted, abs=1e-4)
        assert float(x.grad) == passed


def test_the_gradient_of_a_scale_is_damped_and_its_value_is_not():
    x, scale = torch.tensor([0.3, 5.0]), torch.tensor(1.0, requires_grad=True)
    made = fake_quantize(x, scale, 0, 3, damping=0.5)
    made.sum().backward()
    assert made.tolist() == [0, 3]
    assert float(scale.grad) == pytest.approx(0.5 * (-0.3 + 3))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_weight_is_rounded_with_its_norm_folded_in(bits):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3).eval()
    norm.weight.data, norm.running_var = torch.tensor([0.5, -2.0, 0.0]), torch.tensor([4.0, 0.1, 1.0])
    weight = torch.randn(3, 2, 3, 3)
    quantizer = WeightQuantizer(weight, bits, norm, learned=True)
    found = quantizer(weight)
    highest = 2 ** (bits - 1) - 1
    for channel in range(3):
        k = float(norm.weight[channel]) / (float(norm.running_var[channel]) + norm.eps) ** 0.5 or 1.0
        scale = float(quantizer.scale[channel])
        wanted = torch.clamp(torch.round(weight[channel] * k / scale), -highest, highest) * scale / k
        torch.testing.assert_close(found[channel], wanted)
        assert len(found[channel].unique()) <= 2**bits - 1
    torch.testing.assert_close(quantizer.codes(weight) * quantizer.scale[:, None, None, None] / quantizer.folding(weight), found)


def test_the_first_scale_of_a_row_has_the_smallest_error_of_all():
    weight, grid = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)), Grid(3, signed=True, narrow=True)
    scale = best_scale(weight, grid)
    for row, chosen in zip(weight, scale, strict=True):
        errors = [float((torch.clamp((row / each).round(), -3, 3) * each - row).square().sum()) for each in row.abs().max() / 3 * torch.linspace(0.2, 1, 81)]
        assert float((torch.clamp((row / chosen).round(), -3, 3) * chosen - row).square().sum()) == pytest.approx(min(errors), rel=1e-4)
    assert best_scale(torch.zeros(1, 4), grid) > 0


def test_a_learned_scale_trains_and_the_other_follows_what_training_sees():
    x = torch.rand(64, 10) * 8
    learned, observed = (ActivationQuantizer(1 / 255, 0, Grid(8), learned) for learned in (True, False))
    assert {name for name, _ in learned.named_parameters()} == {"log_scale"}
    assert not list(observed.parameters())
    for _ in range(500):
        learned.observe(x)
        observed.observe(x)
    assert learned.ends == pytest.approx((0, 1))
    assert observed.ends[1] == pytest.approx(8, rel=0.05)
    (learned(x) - x).square().mean().backward()
    assert learned.log_scale.grad < 0  # a wider range would fit better
    assert Trait.FAKE_QUANT in traits_of(learned)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3, affine=False), nn.BatchNorm1d(3, track_running_stats=False)])
def test_norms_without_weight_or_statistics_fold_what_they_have(norm):
    factor = folding(norm, torch.ones(3, 2))
    torch.testing.assert_close(torch.ones(3, 1) * factor, torch.full((3, 1), (1 + norm.eps) ** -0.5 if norm.running_var is not None else 1.0))
