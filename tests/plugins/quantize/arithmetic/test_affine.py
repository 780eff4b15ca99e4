"""Scale, zero point and integers, against onnxruntime's own functions and operator."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper
from onnxruntime import InferenceSession
from onnxruntime.quantization.quant_utils import compute_scale_zp

from kdkit_quantize.arithmetic import Grid, affine_of, dequantize, quantize

GRIDS = {
    TensorProto.UINT8: Grid(8), TensorProto.INT8: Grid(8, signed=True), TensorProto.UINT16: Grid(16), TensorProto.INT16: Grid(16, signed=True),
}  # fmt: skip
ends = st.floats(-1e4, 1e4, width=32)


@pytest.mark.parametrize(
    ("bits", "signed", "narrow", "expected"), [(8, False, False, (0, 255)), (8, True, False, (-128, 127)), (4, True, True, (-7, 7)), (2, False, False, (0, 3))]
)
def test_a_grid_has_the_integers_of_its_bits(bits, signed, narrow, expected):
    grid = Grid(bits, signed, narrow)
    assert (grid.lowest, grid.highest) == expected
    assert grid.steps == expected[1] - expected[0]
    assert np.iinfo(grid.dtype).min <= grid.lowest
    assert grid.highest <= np.iinfo(grid.dtype).max


@pytest.mark.parametrize("odd", [{"bits": 1}, {"bits": 17}, {"narrow": True}])
def test_a_grid_that_does_not_exist_is_refused(odd):
    with pytest.raises(ValueError, match=r"bits|narrow"):
        Grid(**odd)


@given(ends, ends, st.sampled_from(sorted(GRIDS)), st.booleans())
@settings(deadline=None)
def test_scale_and_zero_point_are_those_of_onnxruntime(one, other, kind, symmetric):
    grid = GRIDS[kind]
    low, high = (np.array(each, np.float32) for each in sorted((one, other)))
    zero, scale = compute_scale_zp(low, high, np.array(grid.lowest, grid.dtype), np.array(grid.highest, grid.dtype), symmetric)
    found = affine_of(low, high, grid, symmetric)
    assert (float(found[0]), int(found[1])) == (float(scale), int(zero))


def onnxruntime_pair(values: np.ndarray, scale: np.ndarray, zero: np.ndarray, kind: int) -> list[np.ndarray]:
    """What its QuantizeLinear and DequantizeLinear give; scales along the first axis."""
    tensors = [helper.make_tensor("s", TensorProto.FLOAT, scale.shape, scale.ravel()), helper.make_tensor("z", kind, zero.shape, zero.ravel())]
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=0), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=0)]
    outputs = [helper.make_tensor_value_info("q", kind, None), helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "pair", [helper.make_tensor_value_info("x", TensorProto.FLOAT, values.shape)], outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": values})


@pytest.mark.parametrize("kind", sorted(GRIDS))
@pytest.mark.parametrize("channels", [1, 5])
def test_integers_and_what_they_stand_for_are_those_of_onnxruntime(kind, channels):
    random, grid = np.random.default_rng(kind), GRIDS[kind]
    values = (random.normal(size=(channels, 4000)) * np.arange(1, channels + 1)[:, None]).astype(np.float32)
    values[:, :50] = np.arange(50) * np.float32(0.5)
    scale, zero = affine_of(values.min(1) * 0.7, values.max(1) * 0.7, grid)
    scale[0] = 0.25  # ties
    wanted = onnxruntime_pair(values, scale if channels > 1 else scale[0], zero if channels > 1 else zero[0], kind)
    integers = quantize(values, scale[:, None], zero[:, None], grid)
    assert np.array_equal(integers, wanted[0])
    assert np.array_equal(dequantize(integers, scale[:, None], zero[:, None]), wanted[1])


@given(
    arrays(np.float32, st.integers(1, 30), elements=st.floats(-100, 100, width=32)),
    st.sampled_from([Grid(8), Grid(4, signed=True), Grid(2), Grid(6, signed=True, narrow=True)]),
)
@settings(deadline=None)
def test_a_value_in_range_moves_by_half_a_step_at_most_and_zero_and_integers_stay(values, grid):
    scale, zero = affine_of(values.min(), values.max(), grid)
    integers = quantize(values, scale, zero, grid)
    there = dequantize(integers, scale, zero)
    # the zero point is rounded, so that the range is shifted by up to half a step
    assert (np.abs(there - values) <= scale * 1.001 + 1e-6).all()
    assert dequantize(quantize(0.0, scale, zero, grid), scale, zero) == 0
    assert np.array_equal(quantize(there, scale, zero, grid), integers)
