"""Requantization in integers alone, against onnxruntime's convolutions and products, to the bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper
from onnxruntime import InferenceSession

from kdkit_quantize.arithmetic import Grid, multiplier_and_shift, requantize

factors = st.floats(2.0**-30, 4.0, width=32)


@given(factors)
def test_a_factor_is_its_multiplier_shifted(factor):
    multiplier, shift = multiplier_and_shift(factor)
    assert 2**23 <= multiplier < 2**24
    assert float(multiplier) * 2.0 ** -float(shift) == factor


@pytest.mark.parametrize("odd", [0.0, -1.0, np.inf, np.nan])
def test_a_factor_that_scales_nothing_is_refused(odd):
    with pytest.raises(ValueError, match="positive"):
        multiplier_and_shift([1.0, odd])


@given(arrays(np.int32, 50, elements=st.integers(-(2**31), 2**31 - 1)), factors, st.integers(0, 255))
@settings(deadline=None)
def test_the_integers_are_those_of_float32_arithmetic(sums, factor, zero):
    """As onnxruntime computes them, in float32: convert, multiply, clamp, round halves to even, add the zero point."""
    scaled = sums.astype(np.float32) * np.float32(factor)
    wanted = np.round(np.clip(scaled, -zero, 255 - zero)) + zero
    assert np.array_equal(requantize(sums, *multiplier_and_shift(factor), zero, Grid(8)), wanted)


def test_halves_go_to_the_even_neighbour():
    sums = np.arange(-7, 8)
    assert requantize(sums, *multiplier_and_shift(0.5), 0, Grid(8, signed=True)).tolist() == [round(each / 2) for each in sums.tolist()]
    assert requantize(sums, *multiplier_and_shift(4.0), 0, Grid(8, signed=True)).tolist() == [4 * each for each in sums.tolist()]


def test_a_quantized_convolution_of_onnxruntime_is_equal_to_the_bit():
    random = np.random.default_rng(0)
    x, w = random.integers(0, 256, (3, 4, 9, 9), dtype=np.uint8), random.integers(-127, 128, (6, 4, 3, 3), dtype=np.int8)
    bias = random.integers(-5000, 5000, 6, dtype=np.int32)
    scale_x, scale_y, zero_x, zero_y = np.float32(0.021), np.float32(0.34), 117, 31
    scale_w = random.uniform(0.001, 0.02, 6).astype(np.float32)
    wanted = _run_convolution(x, w, bias, (scale_x, scale_y, scale_w), (zero_x, zero_y))
    sums = np.zeros((3, 6, 7, 7), np.int64)
    for row in range(3):
        for column in range(3):
            window = x[:, :, row : row + 7, column : column + 7].astype(np.int64) - zero_x
            sums += np.einsum("nchw,oc->nohw", window, w[:, :, row, column].astype(np.int64))
    sums += bias[:, None, None]
    multiplier, shift = multiplier_and_shift(scale_x * scale_w / scale_y)
    found = requantize(sums, multiplier[:, None, None], shift[:, None, None], zero_y, Grid(8))
    assert np.array_equal(found, wanted)
    assert 0.01 < ((wanted == 0) | (wanted == 255)).mean() < 0.5


def _run_convolution(x: np.ndarray, w: np.ndarray, bias: np.ndarray, scales: tuple, zeros: tuple[int, int]) -> np.ndarray:
    held = {"xs": scales[0], "ys": scales[1], "ws": scales[2]}
    tensors = [helper.make_tensor(name, TensorProto.FLOAT, np.shape(value), np.ravel(value)) for name, value in held.items()]
    tensors += [helper.make_tensor(name, TensorProto.UINT8, [], [value]) for name, value in zip(("xz", "yz"), zeros, strict=True)]
    tensors += [helper.make_tensor("w", TensorProto.INT8, w.shape, w.ravel()), helper.make_tensor("wz", TensorProto.INT8, [6], [0] * 6)]
    tensors += [helper.make_tensor("b", TensorProto.INT32, bias.shape, bias)]
    node = helper.make_node("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["y"])
    output = helper.make_tensor_value_info("y", TensorProto.UINT8, None)
    graph = helper.make_graph([node], "convolution", [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)], [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
