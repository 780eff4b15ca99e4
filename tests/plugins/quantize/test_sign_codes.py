"""Binary and ternary weights: the formulas of the papers, and their optimality."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn

from kdkit import Context, Session
from kdkit.measurement.size import count_parameters, size_bytes
from kdkit.stages.validation import validate_stage
from kdkit.tasks import Classification
from kdkit_quantize.binary import Binary
from kdkit_quantize.group_quantization import dequantize
from kdkit_quantize.sign_codes import binary_code, ternary_code
from kdkit_quantize.ternary import Ternary
from tests.fixtures import zoo


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(some.integers(1, 4), some.integers(1, 20), some.integers(1, 20), some.integers(0, 999))
@settings(deadline=None)
def test_a_binary_weight_is_the_mean_size_times_the_sign(rows, columns, group, seed):
    weight = matrix(rows, columns, seed)
    found = dequantize(binary_code(weight, group))
    for row in range(rows):
        for start in range(0, columns, group):
            part = weight[row, start : start + group]
            torch.testing.assert_close(found[row, start : start + group], part.abs().mean() * part.sign(), atol=1e-6, rtol=1e-3)


@given(some.floats(0.5, 1.5), some.integers(0, 999))
@settings(deadline=None)
def test_no_other_scale_of_the_signs_is_nearer(factor, seed):
    weight = matrix(1, 30, seed)
    found = dequantize(binary_code(weight, 30))
    assert (weight - found).square().sum() <= (weight - factor * found).square().sum() + 1e-4


@given(some.integers(1, 4), some.integers(1, 20), some.integers(1, 20), some.integers(0, 999))
@settings(deadline=None)
def test_a_ternary_weight_is_zero_below_the_threshold_and_the_mean_of_the_others_above(rows, columns, group, seed):
    weight = matrix(rows, columns, seed)
    found = dequantize(ternary_code(weight, group))
    for row in range(rows):
        for start in range(0, columns, group):
            part = weight[row, start : start + group]
            above = part.abs() > 0.7 * part.abs().mean()
            expected = torch.where(above, part[above].abs().mean() * part.sign(), 0.0)
            torch.testing.assert_close(found[row, start : start + group], expected, atol=1e-6, rtol=1e-3)


def test_ternary_weights_are_nearer_than_binary_ones():
    weight = matrix(8, 200)
    assert (weight - dequantize(ternary_code(weight, 200))).norm() < 0.8 * (weight - dequantize(binary_code(weight, 200))).norm()


def test_weights_that_are_all_zero_stay_zero_or_tiny():
    assert dequantize(ternary_code(torch.zeros(2, 8), 8)).abs().max() == 0


@pytest.mark.parametrize(("stage", "bits"), [(Binary, 1), (Ternary, 2)])
def test_weights_take_one_or_two_bits_and_a_scale_for_each_output(stage, bits):
    assert not list(validate_stage(stage))
    net = nn.Sequential(nn.Linear(64, 10, bias=False))
    small = stage().apply(net, Context(task=Classification()))
    assert size_bytes(small) == 10 * 64 * bits // 8 + 10 * (4 if stage is Binary else 3)
    assert count_parameters(small) == 640
    assert len(small[0].weight[0].unique()) == (2 if stage is Binary else 3)


@pytest.mark.parametrize("line", ["quantize binary --skip head --group 16", "quantize ternary --layers second"])
def test_a_saved_version_comes_back_bit_for_bit(line, tmp_path):
    mine = Session(zoo.mlp(), eval=[zoo.batch("mlp")])
    made = mine.run(line)
    mine.save(tmp_path / "small")
    loaded = Session.open(tmp_path / "small").head.model
    assert torch.equal(zoo.batch("mlp").call(loaded), zoo.batch("mlp").call(made.model))


@pytest.mark.slow
@pytest.mark.parametrize("line", ["quantize binary --group 16", "quantize ternary --group 16"])
def test_an_exported_graph_computes_with_the_packed_signs(line):
    mine = Session(zoo.mlp(), eval=[zoo.batch("mlp")])
    packed = mine.run(line).model
    made = mine.run("convert onnx")
    assert "3 of 3 packed layers stay packed in onnxruntime" in made.notes
    torch.testing.assert_close(zoo.batch("mlp").call(made.model), zoo.batch("mlp").call(packed), atol=1e-5, rtol=1e-4)
