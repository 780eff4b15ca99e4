"""quantize static: weights and activations in 8 bits, with ranges observed on data."""

import logging

import numpy as np
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from kdkit import Context, KdError, Trait
from kdkit.backends.onnx.graph import packed_of
from kdkit.backends.onnx.model import OnnxModel
from kdkit.backends.onnx.signature import describe_output
from kdkit.data import Batch
from kdkit.measurement.macs import count_macs
from kdkit.measurement.size import count_parameters, size_bytes
from kdkit.models.traits import traits_of
from kdkit.session.adoption import adopt_data
from kdkit.stages.validation import validate_stage
from kdkit.tasks import Classification
from kdkit_quantize.static import Static
from tests.fixtures import zoo
from tests.fixtures.onnx_zoo import exported

STATIC = ("mlp", "cnn", "depthwise", "lstm", "tiny_bert", "tiny_llama", "tiny_gpt2")


def quantized(model: OnnxModel, *batches: Batch, **options) -> tuple[OnnxModel, list[str]]:
    context = Context(task=Classification(), objects={"calibration": adopt_data(list(batches))}, stage="quantize static")
    return Static(**options).apply(model, context), context.notes


def of_zoo(name: str, **options) -> tuple[OnnxModel, list[str]]:
    return quantized(exported(name), zoo.batch(name), **options)


def first(output) -> torch.Tensor:
    return describe_output(output)[1][0]


def cosine(name: str, made: OnnxModel, items: int = 8) -> float:
    return cosine_on(zoo.batch(name, items=items, seed=7), name, made)


def cosine_on(batch: Batch, name: str, made: OnnxModel) -> float:
    return nn.functional.cosine_similarity(first(batch.call(made)).flatten(), first(batch.call(exported(name))).flatten(), 0).item()


def operators(model: OnnxModel) -> list[str]:
    return [node.op_type for node in model.graph().graph.node]


def test_it_is_a_valid_stage_that_needs_calibration_data():
    assert not list(validate_stage(Static))
    assert "calibration" in Static().required_inputs().names()


@pytest.mark.slow
@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize("form", ["auto", "pairs"])
def test_the_quantized_model_answers_nearly_alike_at_any_batch_size(name, form):
    made, _ = of_zoo(name, form=form)
    assert [cosine(name, made, items) > 0.998 for items in (1, 3, 21)] == [True] * 3
    assert traits_of(made) == {Trait.ONNX, Trait.PACKED_WEIGHTS}
    batch = zoo.batch(name)
    assert count_macs(made, batch) == count_macs(exported(name), batch)


@pytest.mark.parametrize("name", ["cnn", "depthwise", "mlp"])
def test_every_weight_of_a_convolutional_net_takes_a_byte(name):
    made, notes = of_zoo(name)
    assert count_parameters(made) == count_parameters(exported(name))
    assert notes[0].endswith("layers")
    assert "in float" not in " ".join(notes)
    assert size_bytes(made) < size_bytes(exported(name)) / 1.3
    assert size_bytes(of_zoo(name, form="operators")[0]) < size_bytes(exported(name)) / 1.8


def test_operators_make_a_smaller_file_than_pairs_and_the_same_answers():
    small, large = of_zoo("cnn", form="operators")[0], of_zoo("cnn")[0]
    assert size_bytes(small) < size_bytes(large)
    assert "QLinearConv" in operators(small)
    assert "QLinearConv" not in operators(large)
    torch.testing.assert_close(first(zoo.batch("cnn").call(small)), first(zoo.batch("cnn").call(large)), atol=0.05, rtol=0.05)


def convolutions(model: OnnxModel) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """(weight, its scale, its zero point, activation's zero point) of each 8-bit convolution."""
    graph = model.graph().graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return [tuple(held[node.input[place]] for place in (3, 4, 5, 2)) for node in graph.node if node.op_type == "QLinearConv"]


def folded(model: nn.Module) -> list[np.ndarray]:
    """The weights of the zoo's cnn with each BatchNorm in the convolution before it."""
    pairs = [(model.stem, model.bn)] + [pair for block in model.blocks for pair in ((block.conv1, block.bn1), (block.conv2, block.bn2))]
    return [(conv.weight * (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None, None]).detach().numpy() for conv, norm in pairs]


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_graph_holds_the_weights_rounded_by_hand(per_channel):
    made, _ = of_zoo("cnn", per_channel=per_channel, reduce_range="no", form="operators")
    held = convolutions(made)
    assert len(held) == 5
    for (stored, scale, zero, _), weight in zip(held, folded(zoo.cnn()), strict=True):
        expected = np.abs(weight).max((1, 2, 3)) / 127 if per_channel else np.abs(weight).max() / 127
        np.testing.assert_allclose(scale, expected, rtol=1e-4)
        assert stored.dtype == np.int8
        assert not zero.any()
        step = np.reshape(scale, (-1, 1, 1, 1))
        assert (np.abs(stored * step - weight) <= step * 0.501).all()


def test_scales_of_activations_are_the_observed_range_in_255_steps():
    batch = zoo.batch("cnn")
    made, _ = of_zoo("cnn", form="pairs")
    graph = made.graph().graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    entry = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x")
    low, high = batch.args[0].min().item(), batch.args[0].max().item()
    assert held[entry.input[1]] == pytest.approx((high - low) / 255, rel=1e-5)
    assert held[entry.input[2]] == pytest.approx(round(-low / ((high - low) / 255)), abs=1)


@pytest.mark.parametrize(("layout", "weight", "activation"), [("auto", np.int8, np.uint8), ("u8s8", np.int8, np.uint8), ("s8s8", np.int8, np.int8)])
def test_the_layout_is_the_one_asked_for_and_by_default_u8_times_s8(monkeypatch, layout, weight, activation):
    monkeypatch.setattr("kdkit_quantize.int8_stage.fastest_layout", lambda: "u8s8")
    made, _ = of_zoo("cnn", layout=layout, form="operators")
    assert {(stored.dtype.type, entry.dtype.type) for stored, _, _, entry in convolutions(made)} == {(weight, activation)}


def test_u8_weights_come_as_pairs_and_are_refused_as_operators():
    made, _ = of_zoo("cnn", layout="u8u8")
    assert {tensor.data_type for tensor in packed_of(made.graph())} == {TensorProto.UINT8}
    assert cosine("cnn", made) > 0.998
    assert any("--layout u8u8" in problem for problem in Static(layout="u8u8", form="operators").check(made, Context(task=Classification())))


def test_without_vnni_the_weights_stay_within_seven_bits(monkeypatch):
    monkeypatch.setattr("kdkit_quantize.int8_stage.has_dot_product", lambda: False)
    made, notes = of_zoo("cnn", form="operators")
    assert max(np.abs(stored.astype(int)).max() for stored, *_ in convolutions(made)) <= 64
    assert any("no VNNI" in note for note in notes)
    assert max(np.abs(stored.astype(int)).max() for stored, *_ in convolutions(of_zoo("cnn", reduce_range="no", form="operators")[0])) == 127


@pytest.mark.slow
def test_each_method_gives_ranges_of_its_own_and_notes_what_it_clips():
    outlier = zoo.batch("cnn", items=64)
    outlier.args[0][0, 0, 0, 0] = 40.0
    onnx, entries = exported("cnn"), {}
    named = [{"method": name} for name in ("minmax", "mse", "kl", "entropy", "admm", "percentile")]
    for options in (*named, {"method": "percentile", "percentile": 99.0}):
        made, notes = quantized(onnx, outlier, form="pairs", **options)
        clipping = [note for note in notes if note.startswith(f"clipping by {options['method']}: ")]
        assert len(clipping) == (options["method"] != "minmax")
        assert all("of the activations are outside of their ranges; most in " in note for note in clipping if options["method"] != "mse")
        graph = made.graph().graph
        held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        entry = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x")
        entries[tuple(options.values())] = float(held[entry.input[1]]) * 255
    assert entries[("minmax",)] == pytest.approx(40 - outlier.args[0].min().item(), rel=1e-3)
    assert entries[("percentile", 99.0)] < entries[("percentile",)] < entries[("minmax",)]
    assert entries[("kl",)] == entries[("entropy",)] < entries[("minmax",)] / 2
    assert entries[("mse",)] < entries[("minmax",)]
    assert entries[("admm",)] == pytest.approx(entries[("mse",)], rel=0.05)


@pytest.mark.parametrize(("layout", "activation", "weight"), [("u16s8", np.uint16, np.int8), ("u16s16", np.uint16, np.int16), ("s16s16", np.int16, np.int16)])
def test_sixteen_bits_are_nearly_exact(layout, activation, weight):
    made, notes = of_zoo("cnn", layout=layout)
    graph = made.graph().graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert {held[node.input[2]].dtype.type for node in graph.node if node.op_type == "QuantizeLinear"} == {activation}
    assert {numpy_helper.to_array(tensor).dtype.type for tensor in packed_of(made.graph()) if len(tensor.dims) > 1} == {weight}
    assert f"in {8 * weight().itemsize} bits" in notes[0]
    seen = zoo.batch("cnn")
    assert 1 - cosine_on(seen, "cnn", made) < (1 - cosine_on(seen, "cnn", of_zoo("cnn")[0])) / (1.2 if weight is np.int8 else 20)
    assert traits_of(made) == {Trait.ONNX, Trait.PACKED_WEIGHTS}


@pytest.mark.parametrize("layout", ["u16s8", "s16s16"])
def test_operators_of_sixteen_bits_are_refused_before_any_work(layout):
    problems = list(Static(layout=layout, form="operators").check(exported("cnn"), Context(task=Classification())))
    assert problems == [f"quantize static: --layout {layout} --form operators: onnxruntime has no 16-bit operators; use --form pairs"]


def test_symmetric_activations_have_their_zero_in_the_middle():
    made, _ = of_zoo("cnn", activations="symmetric", form="pairs")
    graph = made.graph().graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    zeros = {int(held[node.input[2]]) for node in graph.node if node.op_type == "QuantizeLinear"}
    assert zeros <= {127, 128}
    assert cosine("cnn", made) > 0.99


def test_asymmetric_weights_run_too():
    made, _ = of_zoo("cnn", weights="asymmetric")
    assert cosine("cnn", made) > 0.998


def test_only_as_many_batches_are_read_as_asked():
    read = []

    def batches():
        for seed in range(10):
            read.append(seed)
            yield zoo.batch("mlp", seed=seed)

    context = Context(task=Classification(), objects={"calibration": adopt_data(list(batches()))})
    read.clear()
    received: list = []
    context.observe = received.append
    Static(batches=3, form="pairs").apply(exported("mlp"), context)
    assert [item.done for item in received] == [1, 2, 3]
    assert received[-1].total == 3


def test_layers_that_are_skipped_stay_in_float_and_are_named():
    made, notes = of_zoo("cnn", skip=("blocks.0", "head"), form="operators")
    assert len(convolutions(made)) == 3
    assert operators(made).count("Conv") == 2
    assert "in float: blocks.0.conv1, blocks.0.conv2, head" in notes
    with pytest.raises(KdError, match="bloks"):
        of_zoo("cnn", skip=("bloks",))


def test_only_the_operators_named_are_quantized():
    made, _ = of_zoo("cnn", operators=("Conv",), form="operators")
    assert "QLinearConv" in operators(made)
    assert "Gemm" in operators(made)
    assert "QLinearAdd" not in operators(made)
    problems = list(Static(operators=("Convolution",)).check(made, Context(task=Classification())))
    assert len(problems) == 1
    assert "--operators Convolution" in problems[0]


def test_attention_products_stay_in_float_and_dynamic_is_recommended():
    made, notes = of_zoo("tiny_bert")
    assert "quantize dynamic" in notes[0]
    graph = made.graph().graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    in_float = [node for node in products if "DequantizeLinear" not in {made_by.get(name) for name in node.input}]
    assert len(in_float) == 4


def test_the_choice_between_forms_falls_back_where_operators_do_not_run(monkeypatch):
    monkeypatch.setattr("kdkit_quantize.static._failure", lambda made, context: KdError("no kernel"))
    made, notes = of_zoo("cnn", form="auto")
    assert "QLinearConv" not in operators(made)
    assert any("as pairs" in note for note in notes)
    with pytest.raises(KdError, match="no kernel"):
        of_zoo("cnn", form="operators")


def test_no_calibration_data_says_what_to_give():
    with pytest.raises(KdError, match="calibration"):
        Static().apply(exported("mlp"), Context(task=Classification(), stage="quantize static"))


def test_it_says_nothing_on_the_side(capfd, caplog):
    with caplog.at_level(logging.INFO):
        of_zoo("cnn")
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert logging.root.manager.disable == logging.NOTSET


@pytest.mark.parametrize("options", [{}, {"form": "operators"}, {"layout": "u16s16"}])
def test_the_forecast_knows_the_size_without_data(options):
    forecast = Static(**options).forecast(exported("cnn"), Context(task=Classification()))
    assert forecast.size_bytes == pytest.approx(size_bytes(of_zoo("cnn", **options)[0]), rel=0.1)


def test_a_graph_with_stale_shapes_is_quantized_all_the_same():
    """A dynamo export leaves shapes that disagree with what quantization infers; here they are put in again."""
    onnx = exported("mlp")
    graph = onnx.graph()
    from onnx import helper

    graph.graph.value_info.append(helper.make_tensor_value_info(graph.graph.node[0].output[0], TensorProto.FLOAT, [128, 999]))
    stale = OnnxModel(graph.SerializeToString(), onnx.signature)
    for stage in (Static(), Static(form="pairs")):
        context = Context(task=Classification(), objects={"calibration": adopt_data([zoo.batch("mlp")])})
        assert cosine("mlp", stage.apply(stale, context)) > 0.998
