"""Outlier columns: products are split without a change of their outputs, and skip connections stay in float."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession
from torch import nn

from kdkit import Batch, Context
from kdkit.backends.onnx.export import to_onnx
from kdkit.session.adoption import adopt_data
from kdkit.tasks import Embedding
from kdkit_quantize.arithmetic import Range
from kdkit_quantize.calibration import calibrate
from kdkit_quantize.layers import layers_of
from kdkit_quantize.outliers import RATIO, LargestByColumn, find_outliers, isolate, separate
from kdkit_quantize.static import Static


def graph():
    """relu(x) · w1 and relu(x) · w2, and relu(x) beside them, as a skip connection."""
    random = np.random.default_rng(0)
    weights = [numpy_helper.from_array(random.normal(size=(6, 6)).astype(np.float32), name) for name in ("w1", "w2")]
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], name="act/Relu"),
        helper.make_node("MatMul", ["h", "w1"], ["a"], name="one/MatMul"),
        helper.make_node("MatMul", ["h", "w2"], ["b"], name="two/MatMul"),
        helper.make_node("Sum", ["a", "b", "h"], ["y"], name="sum/Sum"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "t", 6]) for name in ("x", "y")]
    return helper.make_model(helper.make_graph(nodes, "net", ends[:1], ends[1:], weights), opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model, x: np.ndarray) -> np.ndarray:
    return InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def test_a_split_graph_computes_the_same():
    x = np.random.default_rng(1).normal(size=(2, 3, 6)).astype(np.float32)
    model = graph()
    wanted = run(model, x)
    assert separate(model, layers_of(model), {"h": np.array([1, 4])}) == 2
    np.testing.assert_allclose(run(model, x), wanted, rtol=1e-5, atol=1e-5)
    assert isolate(model, layers_of(model)) == {"h_copy": "h"}
    np.testing.assert_allclose(run(model, x), wanted, rtol=1e-5, atol=1e-5)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    inside = [held[node.input[1]] for node in model.graph.node if node.op_type == "MatMul" and node.name in ("one/MatMul", "two/MatMul")]
    assert [np.flatnonzero(~weight.any(1)).tolist() for weight in inside] == [[1, 4], [1, 4]]
    assert [node.input[0] for node in model.graph.node if node.op_type == "Gather"] == ["h", "h"]


def test_what_no_other_node_reads_needs_no_copy():
    model = graph()
    model.graph.node[-1].input[:] = ["a", "b"]
    assert isolate(model, layers_of(model)) == {}


def test_outliers_are_the_largest_columns_far_above_the_median_one():
    largest = np.array([1.0, RATIO * 1.2, 1.1, RATIO * 9, 0.9, RATIO * 0.8, 1.0])
    assert find_outliers(largest, 16).tolist() == [1, 3]
    assert find_outliers(largest, 1).tolist() == [3]
    assert find_outliers(np.ones(8), 16).size == 0


def test_the_largest_magnitude_of_each_column_is_seen_over_all_batches():
    parts = [np.random.default_rng(seed).normal(size=(2, 5, 4)) for seed in range(3)]
    seen = LargestByColumn()
    for part in parts:
        seen.update(part)
    np.testing.assert_array_equal(seen.largest, np.abs(np.concatenate(parts).reshape(-1, 4)).max(0))


class Block(nn.Module):
    """An attention and a feed-forward part, a few of whose hidden features are a hundred times larger than the others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value, self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 64), nn.Linear(64, 16)
        with torch.no_grad():
            self.up.weight[[3, 40]] *= 100
            self.down.weight[:, [3, 40]] /= 20

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + (self.query(x) @ self.key(x).transpose(1, 2) / 4).softmax(-1) @ self.value(x)
        return x + self.down(self.up(x).relu())


@pytest.mark.slow
def test_a_transformer_with_outliers_is_far_nearer_to_float_and_its_ranges_leave_them_out():
    batch = Batch((torch.randn(32, 8, 16, generator=torch.Generator().manual_seed(1)),))
    source, fresh = to_onnx(Block().eval(), batch), Batch((torch.randn(16, 8, 16, generator=torch.Generator().manual_seed(2)),))
    wanted, errors = fresh.call(source), {}
    for most in (0, 16):
        context = Context(task=Embedding(), objects={"calibration": adopt_data([batch])}, stage="quantize static")
        made = Static(outliers=most).apply(source, context)
        errors[most] = float((fresh.call(made) - wanted).square().mean())
        assert any("outlier columns in float: 2 in 1 activations, 1 products split" in note for note in context.notes) == bool(most)
    assert errors[16] < errors[0] / 5
    hidden = next(node.output[0] for node in source.graph().graph.node if node.op_type == "Relu")
    seen = calibrate(source, [hidden], [batch], Context(task=Embedding()), Range, without={hidden: np.array([3, 40])})
    assert seen[hidden].highest < float(fresh.call(source).abs().max()) * 5
