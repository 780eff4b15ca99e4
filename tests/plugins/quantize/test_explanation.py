"""explain: integer arithmetic alone gives onnxruntime's integers, and the tables tell how."""

import numpy as np
import pytest
import torch
from torch import nn

from kdkit import Batch, Context, KdError, Session
from kdkit.backends.onnx.export import to_onnx
from kdkit.session.adoption import adopt_data
from kdkit.tasks import Classification
from kdkit_quantize.dynamic import Dynamic
from kdkit_quantize.explanation import explain_layer, quantized_layers
from kdkit_quantize.layers import layers_of
from kdkit_quantize.static import Static
from tests.fixtures import zoo
from tests.fixtures.onnx_zoo import exported


def quantized(model, batch: Batch, **options):
    context = Context(task=Classification(), objects={"calibration": adopt_data([batch])}, stage="quantize static")
    return Static(reduce_range="no", **options).apply(model, context)


@pytest.mark.parametrize("name", ["cnn", "depthwise", "mlp"])
def test_integers_of_every_layer_are_onnxruntimes_to_the_bit(name):
    source, batch = exported(name), zoo.batch(name)
    made = quantized(source, batch)
    layers = quantized_layers(made.graph(), layers_of(source.graph()))
    assert list(layers) == [layer.module for layer in layers_of(source.graph())]
    for layer in layers:
        found = explain_layer([made, source], "@small", layer, batch)
        assert (found.equal, found.count) == (found.count, found.count)
        assert found.count >= batch.size


@pytest.mark.parametrize("layout", ["u8s8", "s8s8", "u8u8"])
def test_strides_dilations_padding_and_groups_are_followed_in_any_layout(layout):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=(2, 1), dilation=(1, 2), groups=2), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.LazyLinear(5))
    batch = Batch((torch.randn(4, 4, 12, 13),))
    net(batch.args[0])
    source = to_onnx(net, batch)
    made = quantized(source, batch, layout=layout, weights="asymmetric" if layout == "u8u8" else "symmetric")
    for layer in ("0", "2", "4"):
        found = explain_layer([made, source], "@small", layer, batch)
        assert (layer, found.equal) == (layer, found.count)


def test_the_tables_tell_scales_and_every_step_of_one_number():
    source, batch = exported("cnn"), zoo.batch("cnn")
    found = explain_layer([quantized(source, batch), source], "@small", "stem", batch[:1])
    assert found.codings.head == ["tensor", "integers", "scale", "zero point", "range", "at the ends"]
    assert [row[:2] for row in found.codings.rows] == [["input", "uint8"], ["weight", "int8"], ["output", "uint8"]]
    assert "16 channels" in found.codings.rows[1][2]
    steps = dict(found.steps.rows)
    multiplier, shift = steps["the same in integers: multiplier / 2^shift"].split(" / 2^")
    factor = float(steps["scale of input · scale of weight / scale of output"])
    assert int(multiplier) / 2 ** int(shift) == pytest.approx(factor, rel=1e-5)
    assert steps["with the zero point, within the grid"] == steps["onnxruntime's integer"]
    assert float(steps["the number that it stands for"]) == pytest.approx(float(steps["the same of the float model"]), abs=0.05)
    assert sum(found.shares["float"]) == pytest.approx(1)
    assert set(found.shares) == {"float", "8 bits"}
    assert "<svg" in found._repr_html_()
    assert repr(found).startswith(f"stem of @small: {found.count:,} of {found.count:,} integers")


def test_without_the_float_graph_layers_are_numbered():
    batch = zoo.batch("cnn")
    made = quantized(exported("cnn"), batch)
    found = explain_layer([made], "@small", "", batch)
    assert found.layer == "Conv 1"
    assert list(found.shares) == ["8 bits"]


@pytest.mark.parametrize(("make", "layer", "item", "match"), [
    (lambda: exported("cnn"), "", True, "no quantized layers"),
    (lambda: zoo.cnn(), "", True, "no quantized layers"),
    (lambda: quantized(exported("cnn"), zoo.batch("cnn"), form="operators"), "", True, "no layer as pairs"),
    (lambda: Dynamic().apply(exported("mlp"), Context(task=Classification())), "", True, "no layer as pairs"),
    (lambda: quantized(exported("cnn"), zoo.batch("cnn")), "stemm", True, "no quantized layer 'stemm'"),
    (lambda: quantized(exported("cnn"), zoo.batch("cnn")), "stem", False, "one item of data"),
])  # fmt: skip
def test_what_can_not_be_explained_is_refused_in_one_line(make, layer, item, match):
    with pytest.raises(KdError, match=match) as caught:
        explain_layer([make(), exported("cnn")], "@small", layer, zoo.batch("cnn")[:1] if item else None)
    assert caught.value.hints


@pytest.mark.slow
def test_the_view_explains_a_version_of_a_session():
    data = zoo.batch("cnn", items=32)
    session = Session(zoo.cnn(), eval=[data], measures=())
    session.run("quantize static", label="small")
    shown = session.show("explain quantize @small --layer blocks.0.conv2")
    assert shown.layer == "blocks.0.conv2"
    assert shown.equal == shown.count
    assert np.isclose(sum(shown.shares["8 bits"]), 1)
