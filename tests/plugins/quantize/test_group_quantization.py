"""Group quantization: against the formulas written out weight by weight, and the laws of a grid."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from kdkit_quantize.group_quantization import METHODS, GroupCode, dequantize, half_quadratic, round_to_nearest


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def error(code: GroupCode, weight: torch.Tensor) -> float:
    return float((dequantize(code) - weight).square().mean())


@given(some.integers(1, 3), some.integers(1, 21), some.sampled_from([2, 3, 4, 8]), some.integers(1, 8), some.integers(0, 999))
@settings(deadline=None)
def test_rounding_to_nearest_is_the_formula_written_out(rows, columns, bits, group, seed):
    weight = matrix(rows, columns, seed)
    code = round_to_nearest(weight, bits, group)
    for row in range(rows):
        for number, start in enumerate(range(0, columns, group)):
            values = weight[row, start : start + group].tolist()
            low, high = min(*values, 0.0), max(*values, 0.0)
            scale, zero = float(code.scale[row, number]), int(code.zero[row, number])
            assert scale == pytest.approx((high - low) / (2**bits - 1), rel=1e-3)
            assert abs(zero - min(-low / scale, 2**bits - 1)) <= 0.5 + 1e-4
            for place, value in enumerate(values):
                level = float(code.codes[row, start + place])
                assert abs(level - min(max(value / scale + zero, 0), 2**bits - 1)) <= 0.5 + 1e-4


@given(some.sampled_from([2, 3, 4, 8]), some.floats(1e-3, 1e3), some.integers(0, 999))
@settings(deadline=None)
def test_rounding_to_nearest_errs_by_a_step_at_most(bits, size, seed):
    """Half a step for the weight, and half a step at the ends of the range, since the zero point is rounded too."""
    weight = size * matrix(4, 48, seed)
    code = round_to_nearest(weight, bits, 16)
    steps = (dequantize(code) - weight).abs().unflatten(1, (-1, 16)) / code.scale.float()[..., None]
    assert float(steps.max()) <= 1 + 2e-3 * 2**bits


@given(some.sampled_from([2, 3, 4, 8]), some.integers(0, 999))
@settings(deadline=None)
def test_weights_that_are_zero_stay_zero(bits, seed):
    weight = matrix(4, 40, seed)
    weight[weight.abs() < 0.7] = 0
    assert (dequantize(round_to_nearest(weight, bits, 16))[weight == 0] == 0).all()


def test_a_matrix_on_the_grid_comes_back_exactly():
    codes = torch.randint(0, 16, (4, 32), generator=torch.Generator().manual_seed(0))
    codes[:, ::16], codes[:, 1::16] = 0, 15
    weight = (codes - 7) * 0.125
    for method in METHODS.values():
        torch.testing.assert_close(dequantize(method(weight, 4, 16)), weight, atol=1e-6, rtol=0)


def least_error_written_out(weights: list[float], bits: int, scale: float, steps: int = 20) -> float:
    """The smallest mean absolute error of one group in the steps of the paper's algorithm."""
    top, zero, beta, least = 2**bits - 1, -min(weights) / scale, 10.0, math.inf
    for _ in range(steps):
        codes = [min(max(round(w / scale + zero), 0), top) for w in weights]
        errors = [w - (code - zero) * scale for w, code in zip(weights, codes, strict=True)]
        least = min(least, sum(map(abs, errors)) / len(errors))
        shrunk = [math.copysign(max(abs(e) - abs(e) ** (0.7 - 1) / beta, 0), e) if e else 0.0 for e in errors]
        zero = sum(code - (w - e) / scale for w, code, e in zip(weights, codes, shrunk, strict=True)) / len(weights)
        beta *= 1.01
    return least


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("size", [0.02, 1.0, 30.0])
def test_half_quadratic_groups_err_as_in_the_algorithm_written_out(bits, size):
    """Errors are compared, since several zero points can have the smallest one."""
    weight = size * matrix(3, 24, bits).double()
    code = half_quadratic(weight, bits, 8)
    found = (dequantize(code, torch.float64) - weight).abs().unflatten(1, (-1, 8)).mean(-1)
    for row in range(3):
        for number in range(3):
            scale = float(code.scale[row, number])
            expected = least_error_written_out(weight[row, 8 * number : 8 * number + 8].tolist(), bits, scale)
            assert float(found[row, number]) == pytest.approx(expected, abs=5e-3 * scale)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_half_quadratic_errs_less_than_rounding_to_nearest(bits):
    weight = 0.02 * matrix(64, 512, 1)
    assert error(half_quadratic(weight, bits, 64), weight) < 0.98 * error(round_to_nearest(weight, bits, 64), weight)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_groups_of_equal_weights_and_of_zeros_are_kept(method):
    weight = torch.tensor([[0.0] * 8 + [2.0] * 8 + [-3.0] * 8])
    torch.testing.assert_close(dequantize(method(weight, 4, 8)), weight, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("size", [1e-8, 1e8])
def test_scales_out_of_the_range_of_float16_are_kept_in_float32(method, size):
    weight = size * matrix(2, 32)
    code = method(weight, 8, 32)
    assert code.scale.dtype == torch.float32
    torch.testing.assert_close(dequantize(code) / size, weight / size, atol=0.03, rtol=0)


def test_zero_points_far_from_the_codes_are_precise():
    weight = 1 + 0.001 * matrix(2, 32)
    torch.testing.assert_close(dequantize(half_quadratic(weight, 8, 32)), weight, atol=3e-5, rtol=0)
