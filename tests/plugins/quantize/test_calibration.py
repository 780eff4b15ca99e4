"""Calibration: activations of a graph, against torch's own, whatever the batches."""

import pytest

from kdkit import Batch, Context, KdError
from kdkit.backends.onnx.export import to_onnx
from kdkit.tasks import Classification
from kdkit_quantize.arithmetic import Histogram, Range
from kdkit_quantize.calibration import calibrate
from tests.fixtures import zoo


@pytest.mark.slow
def test_calibrating_sees_the_real_activations_whatever_the_batches():
    model, batch = zoo.cnn(), zoo.batch("cnn", items=19)
    onnx = to_onnx(model, batch)
    stem = next(node.output[0] for node in onnx.graph().graph.node if node.op_type == "Relu")
    captured = []
    model.bn.register_forward_hook(lambda module, inputs, output: captured.append(output.relu()))
    batch.call(model)
    context = Context(task=Classification())
    results = []
    for size in (19, 7, 1):
        parts = [batch[start : start + size] for start in range(0, 19, size)]
        seen = calibrate(onnx, ["x", stem], parts, context, Range)
        results.append({name: (each.lowest, each.highest) for name, each in seen.items()})
        assert results[-1][stem] == pytest.approx((captured[0].min().item(), captured[0].max().item()), abs=1e-5)
        assert results[-1]["x"] == (batch.args[0].min().item(), batch.args[0].max().item())
    assert results[0]["x"] == results[1]["x"] == results[2]["x"]


@pytest.mark.slow
def test_calibrating_tells_its_progress_and_stops_when_cancelled():
    onnx, received = to_onnx(zoo.mlp(), zoo.batch("mlp")), []
    context = Context(task=Classification(), observe=received.append)

    def batches():
        yield zoo.batch("mlp")
        yield zoo.batch("mlp", seed=2)
        context.cancelled.set()
        yield zoo.batch("mlp", seed=3)

    with pytest.raises(KdError, match="cancelled"):
        calibrate(onnx, ["x"], batches(), context, Range, 3)
    assert [item.done for item in received] == [1, 2]


@pytest.mark.slow
def test_no_batches_and_broken_activations_are_errors():
    onnx, context = to_onnx(zoo.mlp(), zoo.batch("mlp")), Context(task=Classification(), stage="quantize static")
    with pytest.raises(KdError, match="quantize static got no batches"):
        calibrate(onnx, ["x"], [], context, Range)
    batch = zoo.batch("mlp")
    batch.args[0][0, 0] = float("nan")
    with pytest.raises(KdError, match="activation x holds infinities or NaN"):
        calibrate(onnx, ["x"], [Batch(batch.args)], context, Histogram)
