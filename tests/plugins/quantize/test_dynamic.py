"""quantize dynamic: 8-bit weights, activations quantized as they come."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from kdkit import Context, KdError, Trait
from kdkit.backends.onnx.export import to_onnx
from kdkit.backends.onnx.graph import numel, packed_of, weights_of
from kdkit.backends.onnx.model import OnnxModel
from kdkit.backends.onnx.signature import describe_output
from kdkit.backends.onnxruntime import Int8Backend
from kdkit.data import Batch
from kdkit.measurement.macs import count_macs
from kdkit.measurement.size import count_parameters, size_bytes
from kdkit.models.traits import traits_of
from kdkit.stages.validation import validate_stage
from kdkit.tasks import Classification
from kdkit_quantize import hardware
from kdkit_quantize.dynamic import Dynamic
from tests.fixtures import zoo
from tests.fixtures.onnx_zoo import exported

DYNAMIC = ("mlp", "lstm", "tiny_bert", "tiny_llama", "tiny_gpt2")


def quantized(model: OnnxModel, **options) -> tuple[OnnxModel, list[str]]:
    """The 8-bit model and the notes; no data is given, and none must be asked for."""
    context = Context(task=Classification(), stage="quantize dynamic")
    return Dynamic(**options).apply(model, context), context.notes


def first(output) -> torch.Tensor:
    return describe_output(output)[1][0]


def cosine(a, b) -> float:
    return nn.functional.cosine_similarity(first(a).flatten(), first(b).flatten(), 0).item()


def weights_of_products(model: OnnxModel) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(8-bit weight, scale, zero point) of each product with weights, in the graph's order."""
    graph = model.graph().graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    scales = {name: scale for node in graph.node if node.op_type == "Mul" for scale in node.input for name in node.output if scale in held}
    makers = {name: node for node in graph.node for name in node.output}
    found = []
    for node in graph.node:
        if node.op_type == "Mul" and all(makers[name].op_type in ("Cast", "Mul") for name in node.input if name in makers) and len(node.input) == 2:
            product = next((makers[makers[name].input[0]] for name in node.input if name in makers and makers[name].op_type == "Cast"), None)
            scale = next((name for name in node.input if name in scales), None)
            if product is not None and scale and product.op_type == "MatMulInteger":
                found.append((held[product.input[1]], held[scales[scale]], held[product.input[3]]))
    return found


def test_it_is_a_valid_stage_that_needs_no_data():
    assert not list(validate_stage(Dynamic))
    assert Dynamic().required_inputs().names() == ["onnx", "onnxruntime"]


@pytest.mark.slow
@pytest.mark.parametrize("name", DYNAMIC)
def test_the_quantized_model_is_called_like_the_model_and_answers_nearly_alike(name):
    onnx, batch = exported(name), zoo.batch(name)
    made, _ = quantized(onnx)
    assert type(batch.call(made)) is type(batch.call(onnx))
    assert cosine(batch.call(made), batch.call(onnx)) > 0.999
    assert not torch.equal(first(batch.call(made)), first(batch.call(onnx)))


@pytest.mark.slow
@pytest.mark.parametrize("name", DYNAMIC)
def test_it_takes_other_batch_sizes_than_the_example(name):
    made, _ = quantized(exported(name))
    for items in (1, 3, 21):
        batch = zoo.batch(name, items=items)
        assert cosine(batch.call(made), batch.call(exported(name))) > 0.998


@pytest.mark.slow
@pytest.mark.parametrize("name", DYNAMIC)
def test_parameters_and_macs_are_counted_as_before(name):
    onnx, batch = exported(name), zoo.batch(name)
    made, _ = quantized(onnx)
    assert count_macs(made, batch) == count_macs(onnx, batch)
    extra = zoo.VOCABULARY * 32 if name == "tiny_gpt2" else 0  # a tied table has one form for looking up and one for multiplying
    assert count_parameters(made) == count_parameters(onnx) + extra


@pytest.mark.slow
def test_traits_and_bytes_say_that_the_weights_are_packed():
    onnx = exported("tiny_bert")
    made, notes = quantized(onnx, reduce_range="no")
    assert traits_of(made) == {Trait.ONNX, Trait.PACKED_WEIGHTS} == (traits_of(onnx) - Dynamic.removes) | Dynamic.adds
    assert size_bytes(made) < size_bytes(onnx) / 3
    assert notes == ["99.4% of the weights in 8 bits: 17 of 17 layers"]


@pytest.mark.slow
def test_the_forecast_knows_the_size_without_quantizing():
    for name in ("mlp", "tiny_bert"):
        onnx = exported(name)
        forecast = Dynamic().forecast(onnx, Context(task=Classification()))
        assert forecast.size_bytes == pytest.approx(size_bytes(quantized(onnx)[0]), rel=0.3)


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_graph_holds_the_weights_rounded_by_hand(per_channel):
    made, _ = quantized(exported("mlp"), per_channel=per_channel, reduce_range="no")
    layers = [module for module in zoo.mlp().modules() if isinstance(module, nn.Linear)]
    held = weights_of_products(made)
    assert len(held) == len(layers)
    for (stored, scale, zero), layer in zip(held, layers, strict=True):
        weight = layer.weight.detach().numpy().T
        expected = np.abs(weight).max(0 if per_channel else None) / 127
        np.testing.assert_allclose(scale, expected, rtol=1e-5)
        assert stored.dtype == np.int8
        assert not zero.any()
        np.testing.assert_allclose(stored * scale, weight, atol=float(np.max(expected)) / 2 * 1.001)
        assert (np.abs(stored.astype(int) - np.round(weight / expected).astype(int)) <= 1).all()


@pytest.mark.slow
def test_the_error_of_a_layer_stays_within_its_bound():
    torch.manual_seed(0)
    layer, batch = nn.Linear(64, 32), Batch((torch.randn(16, 64) * 3,))
    made, _ = quantized(to_onnx(layer, batch))
    x, weight = batch.args[0], layer.weight.detach()
    x_step = (x.max().clamp_min(0) - x.min().clamp_max(0)) / 255
    w_step = weight.abs().amax(1) / 127
    bound = x.abs().sum(1, keepdim=True) * w_step / 2 + (weight.abs().sum(1) + 64 * w_step / 2) * x_step * 0.51
    assert (batch.call(made) - batch.call(layer)).abs().le(bound * 1.01 + 1e-5).all()


@pytest.mark.slow
def test_a_scale_for_every_channel_is_closer_than_one_for_all():
    torch.manual_seed(1)
    layer, batch = nn.Linear(32, 16), Batch((torch.randn(32, 32),))
    layer.weight.data *= torch.logspace(-2, 1, 16)[:, None]
    onnx = to_onnx(layer, batch)
    errors = [(batch.call(quantized(onnx, per_channel=each)[0]) - batch.call(onnx)).abs().div(layer.weight.abs().amax(1).detach()).mean() for each in (True, False)]
    assert errors[0] < errors[1] / 3


def kinds(model: OnnxModel) -> set[int]:
    return {tensor.data_type for tensor in packed_of(model.graph())}


def test_the_layout_is_the_one_asked_for_and_by_default_the_machine_s(monkeypatch):
    onnx = exported("mlp")
    assert kinds(quantized(onnx)[0]) == {TensorProto.INT8}
    assert kinds(quantized(onnx, layout="u8u8")[0]) == {TensorProto.UINT8}
    assert "DynamicQuantizeLinear" in {node.op_type for node in quantized(onnx)[0].graph().graph.node}
    assert any("always u8" in problem for problem in Dynamic(layout="s8s8").check(onnx, Context(task=Classification())))


def largest(model: OnnxModel) -> int:
    return max(int(np.abs(stored.astype(int)).max()) for stored, _, _ in weights_of_products(model))


def test_without_vnni_the_weights_stay_within_seven_bits(monkeypatch):
    onnx = exported("mlp")
    monkeypatch.setattr("kdkit_quantize.int8_stage.has_dot_product", lambda: True)
    assert largest(quantized(onnx)[0]) == 127
    monkeypatch.setattr("kdkit_quantize.int8_stage.has_dot_product", lambda: False)
    made, notes = quantized(onnx)
    assert largest(made) <= 64
    assert "weights within 7 bits, since this processor has no VNNI" in notes
    assert largest(quantized(onnx, reduce_range="no")[0]) == 127


@pytest.mark.parametrize(
    ("arm", "capabilities", "expected"),
    [(False, {"avx512_vnni": True}, True), (False, {"avx_vnni": True}, True), (False, {"amx_int8": True}, True), (False, {"avx2": True}, False), (True, {}, True)],
)
def test_dot_products_are_recognized(monkeypatch, arm, capabilities, expected):
    monkeypatch.setattr(hardware, "is_arm", lambda: arm)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert hardware.has_dot_product() is expected
    assert hardware.fastest_layout() == ("s8s8" if arm else "u8s8")


@pytest.mark.slow
def test_asymmetric_weights_use_the_zero_point():
    torch.manual_seed(2)
    layer, batch = nn.Linear(16, 8), Batch((torch.randn(8, 16),))
    layer.weight.data = layer.weight.data.abs()
    onnx = to_onnx(layer, batch)
    errors = [(batch.call(quantized(onnx, weights=each)[0]) - batch.call(onnx)).abs().mean() for each in ("asymmetric", "symmetric")]
    assert errors[0] < errors[1]


@pytest.mark.slow
def test_embeddings_are_most_of_the_bytes_and_can_be_left_in_float():
    onnx = exported("tiny_bert")
    without, notes = quantized(onnx, embeddings=False)
    assert size_bytes(quantized(onnx)[0]) < size_bytes(without) - 3 * zoo.VOCABULARY * 32 * 0.9
    assert "bert.embeddings.word_embeddings" in notes[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"skip": ("classifier",)}, {"classifier"}),
        ({"skip": ("*.dense",)}, {"bert.encoder.layer.0.intermediate.dense", "bert.pooler.dense", "bert.encoder.layer.1.output.dense"}),
        ({"layers": ("query", "key"), "skip": ("layer.1",)}, {"bert.encoder.layer.1.attention.self.query", "bert.encoder.layer.0.attention.self.value"}),
        ({"operators": ("MatMul",)}, {"bert.embeddings.word_embeddings"}),
    ],
)
def test_layers_that_are_left_out_stay_in_float_and_are_named(options, left):
    onnx = exported("tiny_bert")
    from kdkit_quantize.dynamic import _products

    plan = Dynamic(**options).plan(_products(onnx.graph()))
    assert left <= {layer.module for layer in plan.left}
    made, notes = quantized(onnx, **options)
    assert notes[1].startswith("in float: ")
    floats = sum(tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2 for tensor in made.graph().graph.initializer)
    assert floats >= len(plan.left)


def test_a_pattern_that_means_no_layer_names_near_ones():
    with pytest.raises(KdError, match="clasifier") as error:
        quantized(exported("tiny_bert"), skip=("clasifier",))
    assert "did you mean classifier" in str(error.value)


def test_convolutions_are_sent_to_static():
    with pytest.raises(KdError, match=r"nothing to quantize but head, 0.7% of the weights") as error:
        quantized(exported("cnn"))
    assert "%kd quantize static" in error.value.hints
    made, notes = quantized(exported("cnn"), layers=("head",))
    assert traits_of(made) == {Trait.ONNX, Trait.PACKED_WEIGHTS}
    assert "1 of 6 layers" in notes[0]


@pytest.mark.slow
def test_nothing_left_to_quantize_is_an_error_and_not_a_silent_copy():
    with pytest.raises(KdError, match="nothing to quantize"):
        quantized(exported("mlp"), skip=("*",))
    with pytest.raises(KdError, match="nothing to quantize"):
        quantized(to_onnx(nn.Sequential(nn.ReLU()), Batch((torch.randn(4, 3),))))


def test_an_unknown_operator_is_a_problem_before_any_work():
    problems = list(Dynamic(operators=("Matmul",)).check(exported("mlp"), Context(task=Classification())))
    assert problems == ["quantize dynamic: --operators Matmul: it quantizes MatMul, Gemm, LSTM, Gather, Conv"]


@pytest.mark.slow
def test_attention_products_stay_in_float():
    made, _ = quantized(exported("tiny_bert"))
    counts = [sum(node.op_type == kind for node in made.graph().graph.node) for kind in ("MatMul", "MatMulInteger")]
    assert counts == [4, 14]
    assert made.without == ("SkipLayerNormFusion",)


@pytest.mark.slow
def test_it_saves_loads_and_runs_on_the_int8_backend(tmp_path):
    made, _ = quantized(exported("tiny_bert"))
    loaded = OnnxModel.kdkit_load(tmp_path, made.kdkit_save(tmp_path))
    batch = zoo.batch("tiny_bert")
    assert torch.equal(first(batch.call(loaded)), first(batch.call(made)))
    assert (loaded.packed, loaded.without) == (True, ("SkipLayerNormFusion",))
    with Int8Backend().runner(loaded) as call:
        assert torch.equal(call(batch).logits, batch.call(made).logits)


def test_the_float_model_is_left_as_it_was():
    onnx = exported("mlp")
    before = bytes(onnx.onnx)
    quantized(onnx)
    assert onnx.onnx == before


class Recurrent(nn.Module):
    def __init__(self, kind, width=32):
        super().__init__()
        self.embedding, self.recurrent, self.head = nn.Embedding(50, 16), kind(16, width, batch_first=True), nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.recurrent(self.embedding(x))[0][:, -1])


IDS = Batch((torch.randint(50, (4, 6), generator=torch.Generator().manual_seed(0)),))


@pytest.mark.slow
def test_a_gru_is_counted_and_listed_as_left_in_float():
    made, notes = quantized(to_onnx(Recurrent(nn.GRU), IDS))
    share = sum(numel(each) for each in packed_of(made.graph())) / sum(numel(each) for each in weights_of(made.graph()))
    assert notes[:3] == [f"{share:.1%} of the weights in 8 bits: 2 of 3 layers", "in float: recurrent (GRU)", "onnxruntime has no 8-bit GRU"]
    assert IDS.call(made).shape == (4, 3)


@pytest.mark.slow
def test_a_pattern_that_fits_nothing_is_refused_in_the_model_s_own_names():
    with pytest.raises(KdError, match="pattern 'recurent' fits no module of the model") as caught:
        quantized(to_onnx(Recurrent(nn.LSTM), IDS), layers=("recurent",))
    assert "recurrent" in str(caught.value)


def masked() -> nn.Module:
    import torch.nn.utils.prune as prune

    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    return model


def normalised() -> nn.Module:
    from torch.nn.utils import parametrizations

    return nn.Sequential(parametrizations.weight_norm(nn.Linear(16, 32)), nn.ReLU(), parametrizations.spectral_norm(nn.Linear(32, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("make", [masked, normalised, lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3)).bfloat16()])
def test_masked_parametrized_and_half_layers_are_quantized_like_others(make):
    torch.manual_seed(0)
    model, batch = make().eval(), Batch((torch.randn(8, 16),))
    onnx = to_onnx(model, batch)
    made, notes = quantized(onnx)
    assert "2 of 2 layers" in notes[0]
    assert cosine(batch.call(made), batch.call(onnx)) > 0.99


class Twice(nn.Module):
    """A linear layer that is called twice, and whose weight is an embedding's too."""

    def __init__(self, rows: int):
        super().__init__()
        self.table = nn.Embedding(rows, 16)
        self.inner = nn.Linear(16, rows, bias=True)
        self.inner.weight = self.table.weight
        self.head = nn.Linear(rows, 4)

    def forward(self, ids, x):
        return self.head(torch.relu(self.inner(self.table(ids)) + self.inner(x)))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [16, 24])
def test_a_weight_that_several_operators_read_is_the_same_for_each(rows):
    torch.manual_seed(0)
    net, batch = Twice(rows).eval(), Batch((torch.randint(0, rows, (12,)), torch.randn(12, 16)))
    float_model = to_onnx(net, batch)
    made, _ = quantized(float_model)
    assert cosine(batch.call(made), batch.call(net)) > 0.99
    held = [tensor for tensor in packed_of(made.graph()) if numel(tensor) == rows * 16]
    assert len(held) <= 2
