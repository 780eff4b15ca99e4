"""Counting against values worked out by hand, and against what a safetensors file really holds."""

from __future__ import annotations

import json
import struct
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from kdkit.counting import count_macs, count_parameters, size_bytes, traffic
from kdkit.data import Batch
from tests import zoo


class Function(nn.Module):
    """A function of tensors as a model."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def macs(model, *inputs, **named):
    return count_macs(model.eval(), Batch(inputs, named))


def int8(model, *kinds):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(model), set(kinds), torch.qint8)


def static_int8(layer, inputs):
    """A layer after torch's own static quantization."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(torch.ao.quantization.QuantStub(), layer, torch.ao.quantization.DeQuantStub()).eval()
        per_tensor = torch.ao.quantization.QConfig(torch.ao.quantization.default_observer, torch.ao.quantization.default_weight_observer)
        model.qconfig = per_tensor
        torch.ao.quantization.prepare(model, inplace=True)
        model(inputs)
        return torch.ao.quantization.convert(model, inplace=True)


# MACs: layers, by hand


@pytest.mark.parametrize(
    ("layer", "shape", "by_hand"),
    [
        pytest.param(nn.Linear(3, 4), (2, 3), 2 * 3 * 4, id="linear"),
        pytest.param(nn.Linear(3, 4, bias=False), (2, 5, 3), 2 * 5 * 3 * 4, id="linear on tokens"),
        pytest.param(nn.Conv2d(3, 8, 3, padding=1), (2, 3, 6, 6), 2 * 8 * 6 * 6 * 3 * 9, id="conv"),
        pytest.param(nn.Conv2d(3, 8, 3, stride=2), (2, 3, 7, 7), 2 * 8 * 3 * 3 * 3 * 9, id="strided conv"),
        pytest.param(nn.Conv2d(4, 8, 3, groups=2, padding=1), (1, 4, 5, 5), 8 * 25 * 2 * 9, id="grouped conv"),
        pytest.param(nn.Conv2d(4, 4, 3, groups=4, padding=1), (1, 4, 5, 5), 4 * 25 * 9, id="depthwise conv"),
        pytest.param(nn.ConvTranspose2d(4, 6, 3, stride=2), (1, 4, 5, 5), 4 * 25 * 6 * 9, id="transposed conv"),
        pytest.param(nn.Conv1d(3, 5, 4), (2, 3, 10), 2 * 5 * 7 * 3 * 4, id="conv1d"),
        pytest.param(nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 3 * 27 * 2 * 8, id="conv3d"),
        pytest.param(nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(), nn.LayerNorm(3), nn.Softmax(-1)), (2, 3), 0, id="element-wise work is 0"),
    ],
)
def test_macs_of_a_layer_are_those_worked_out_by_hand(layer, shape, by_hand):
    assert macs(layer, torch.randn(shape)) == by_hand


def test_macs_of_a_look_up_are_0():
    assert macs(nn.Embedding(10, 4), torch.tensor([[1, 2, 3]])) == 0
    assert macs(nn.EmbeddingBag(10, 4), torch.tensor([[1, 2, 3]])) == 0


@pytest.mark.parametrize(
    ("function", "shapes", "by_hand"),
    [
        pytest.param(torch.bmm, [(2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5, id="bmm"),
        pytest.param(lambda a, b: torch.einsum("bij,bkj->bik", a, b), [(2, 3, 4), (2, 5, 4)], 2 * 3 * 5 * 4, id="einsum"),
        pytest.param(torch.addmm, [(5,), (3, 4), (4, 5)], 3 * 4 * 5, id="addmm"),
        pytest.param(torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5, id="baddbmm"),
        pytest.param(torch.addbmm, [(3, 5), (2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5, id="addbmm"),
        pytest.param(torch.matmul, [(3, 4), (4,)], 3 * 4, id="matrix and vector"),
        pytest.param(torch.addmv, [(3,), (3, 4), (4,)], 3 * 4, id="addmv"),
        pytest.param(torch.matmul, [(4,), (4,)], 4, id="dot"),
        # Each item: 6 outputs of a (4, 3) matrix with one input, then of the remaining (3,) with the other.
        pytest.param(lambda a, b: nn.Bilinear(4, 3, 6)(a, b), [(2, 4), (2, 3)], 2 * 6 * (4 * 3 + 3), id="bilinear"),
    ],
)
def test_macs_of_a_product_are_those_worked_out_by_hand(function, shapes, by_hand):
    assert macs(Function(function), *map(torch.randn, shapes)) == by_hand


# MACs: attention


@pytest.mark.parametrize("causal", [False, True])
def test_macs_of_sdpa_count_both_products_of_attention(causal):
    query, key, value = torch.randn(2, 4, 5, 3), torch.randn(2, 4, 7, 3), torch.randn(2, 4, 7, 6)
    attention = Function(lambda *inputs: F.scaled_dot_product_attention(*inputs, is_causal=causal))
    assert macs(attention, query, key, value) == 2 * 4 * (5 * 7 * 3 + 5 * 7 * 6)


def test_macs_of_sdpa_with_grouped_queries_count_every_query_head():
    query, key = torch.randn(2, 4, 5, 3), torch.randn(2, 2, 5, 3)
    attention = Function(lambda query, key: F.scaled_dot_product_attention(query, key, key, enable_gqa=True))
    assert macs(attention, query, key) == 2 * 4 * (2 * 5 * 5 * 3)


@pytest.mark.parametrize("weights", [False, True])
def test_macs_of_multihead_attention_are_those_of_its_slow_path(weights):
    layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    attention = Function(lambda x: layer(x, x, x, need_weights=weights))
    projections, products = 4 * 8 * 8, 2 * 5 * 8
    assert macs(attention, torch.randn(3, 5, 8)) == 3 * 5 * (projections + products)


ENCODER_TOKEN = 4 * 8 * 8 + 2 * 8 * 16 + 2 * 5 * 8
"""MACs a token of a layer of width 8, feed-forward 16, over 5 tokens."""


def test_macs_of_a_transformer_encoder_layer_are_those_of_its_slow_path():
    assert macs(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(3, 5, 8)) == 3 * 5 * ENCODER_TOKEN


def test_macs_of_a_padded_transformer_encoder_count_the_padding_as_it_is_computed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
        padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
        assert macs(encoder, torch.randn(3, 5, 8), src_key_padding_mask=padding) == 2 * 3 * 5 * ENCODER_TOKEN


# MACs: Hugging Face models; 8 items of 12 tokens, width 32, feed-forward 64, 2 layers

PRODUCTS = 2 * 12 * 12 * 32
"""Both products of attention, an item and layer."""

HUGGING_FACE = {
    "tiny_bert": 8 * (2 * (12 * (4 * 32 * 32 + 2 * 32 * 64) + PRODUCTS) + 32 * 32 + 32 * 2),
    "tiny_llama": 8 * (2 * (12 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + PRODUCTS) + 12 * 32 * 96),
    "tiny_gpt2": 8 * (2 * (12 * (4 * 32 * 32 + 2 * 32 * 128) + PRODUCTS) + 12 * 32 * 96),
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_macs_of_a_hugging_face_model_are_those_by_hand_whichever_attention_it_runs(name, attention):
    model = zoo.MODELS[name]()
    model.set_attn_implementation(attention)
    assert count_macs(model, zoo.batch(name)) == HUGGING_FACE[name]


# MACs: recurrent layers; 5 steps of 2 items, 3 features, hidden 4

STEPS = 5 * 2


@pytest.mark.parametrize(
    ("layer", "by_hand"),
    [
        pytest.param(nn.LSTM(3, 4), STEPS * 4 * 4 * (3 + 4), id="lstm"),
        pytest.param(nn.GRU(3, 4), STEPS * 3 * 4 * (3 + 4), id="gru"),
        pytest.param(nn.RNN(3, 4), STEPS * 4 * (3 + 4), id="rnn"),
        pytest.param(nn.LSTM(3, 4, num_layers=2), STEPS * 4 * 4 * ((3 + 4) + (4 + 4)), id="two layers"),
        pytest.param(nn.LSTM(3, 4, bidirectional=True), STEPS * 2 * 4 * 4 * (3 + 4), id="bidirectional"),
        pytest.param(nn.GRU(3, 4, num_layers=2, bidirectional=True), STEPS * 2 * 3 * 4 * ((3 + 4) + (8 + 4)), id="two layers, bidirectional"),
        pytest.param(nn.LSTM(3, 4, proj_size=2), STEPS * (4 * 4 * (3 + 2) + 4 * 2), id="projected"),
    ],
)
def test_macs_of_a_recurrent_layer_are_those_worked_out_by_hand(layer, by_hand):
    assert macs(layer, torch.randn(5, 2, 3)) == by_hand


def test_macs_of_a_packed_sequence_count_its_real_steps_only():
    layer = nn.LSTM(3, 4)
    packed = Function(lambda x: layer(pack_padded_sequence(x, torch.tensor([5, 2]))))
    assert macs(packed, torch.randn(5, 2, 3)) == (5 + 2) * 4 * 4 * (3 + 4)


# MACs: int8 modules


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        pytest.param(nn.Linear(3, 4), torch.randn(2, 5, 3), id="linear"),
        pytest.param(nn.LSTM(3, 4, num_layers=2, bidirectional=True), torch.randn(5, 2, 3), id="lstm"),
        pytest.param(nn.GRU(3, 4, num_layers=2, bidirectional=True), torch.randn(5, 2, 3), id="gru"),
    ],
)
def test_macs_of_a_dynamic_int8_layer_are_those_of_its_float_layer(layer, inputs):
    by_hand = {nn.Linear: 10 * 3 * 4, nn.LSTM: STEPS * 2 * 4 * 4 * ((3 + 4) + (8 + 4)), nn.GRU: STEPS * 2 * 3 * 4 * ((3 + 4) + (8 + 4))}[type(layer)]
    assert macs(int8(layer, type(layer)), inputs) == by_hand


@pytest.mark.parametrize(
    ("layer", "shape", "by_hand"),
    [
        pytest.param(nn.Linear(3, 4), (2, 3), 2 * 3 * 4, id="linear"),
        pytest.param(nn.Conv2d(4, 8, 3, groups=2, padding=1), (1, 4, 5, 5), 8 * 25 * 2 * 9, id="conv"),
        pytest.param(nn.ConvTranspose2d(4, 6, 3, stride=2), (1, 4, 5, 5), 4 * 25 * 6 * 9, id="transposed conv"),
    ],
)
def test_macs_of_a_static_int8_layer_are_those_worked_out_by_hand(layer, shape, by_hand):
    assert macs(static_int8(layer, torch.randn(shape)), torch.randn(shape)) == by_hand


def test_macs_of_an_integer_matrix_product_are_those_by_hand():
    left, right = torch.ones(24, 8, dtype=torch.int8), torch.ones(8, 16, dtype=torch.int8)
    assert macs(Function(torch._int_mm), left, right) == 24 * 8 * 16


def test_macs_and_bytes_of_a_torchao_int8_layer_are_those_by_hand():
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = nn.Sequential(nn.Linear(64, 32)).eval()
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    assert macs(model, torch.randn(3, 64)) == 3 * 64 * 32
    assert 64 * 32 + 4 * 32 * 2 <= size_bytes(model) <= 64 * 32 + 4 * 32 * 2 + 8 * 32


# MACs: laws


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["mlp", "cnn", "lstm", "tiny_bert"]), st.integers(1, 6))
def test_macs_grow_with_the_items_of_the_batch(name, items):
    model = zoo.MODELS[name]()
    batch = zoo.batch(name)
    assert count_macs(model, batch[:items]) == items * count_macs(model, batch[:1])


def test_counting_leaves_modes_statistics_gradients_and_random_state_as_they_were():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), Function(lambda x: x + torch.rand(()))).train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    batch = Batch((torch.ones(3, 4),))
    count_macs(model, batch)
    traffic(lambda batch: batch.call(model), batch, model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


def switches():
    return torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled, torch.backends.cuda.flash_sdp_enabled()


AT_FIRST = switches()


def test_counting_puts_torchs_switches_back_also_when_the_model_fails():
    with pytest.raises(RuntimeError):
        macs(nn.Linear(3, 4), torch.ones(2, 5))
    assert switches() == AT_FIRST


def test_a_model_that_is_not_made_of_tensors_answers_for_itself():
    class Foreign(nn.Module):
        def kdkit_parameters(self):
            return 7

        def kdkit_size_bytes(self):
            return 9

        def kdkit_macs(self, batch):
            return 100 * batch.size

    batch = Batch((torch.ones(3, 2),))
    assert (count_parameters(Foreign()), size_bytes(Foreign()), count_macs(Foreign(), batch)) == (7, 9, 300)


# parameters and bytes


def in_safetensors(model, folder):
    """Bytes of the tensors in the file that safetensors writes of a model."""
    from safetensors.torch import save_model

    file = folder / "model.safetensors"
    save_model(model, str(file))
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    return sum(entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__")


@pytest.mark.parametrize("name", zoo.MODELS)
def test_size_is_what_a_safetensors_file_holds(name, tmp_path):
    model = zoo.MODELS[name]()
    assert size_bytes(model) == in_safetensors(model, tmp_path)


def test_size_of_mixed_types_and_buffers_is_what_a_safetensors_file_holds(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4).bfloat16(), nn.BatchNorm1d(4))
    model.register_buffer("scratch", torch.zeros(1000), persistent=False)
    assert size_bytes(model) == in_safetensors(model, tmp_path) == 2 * 16 + 4 * 16 + 8


def test_shared_weights_count_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert (count_parameters(model), size_bytes(model)) == (16, 64)
    assert count_macs(model, Batch((torch.ones(1, 4),))) == 32


def test_a_model_without_memory_is_counted_too():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert (count_parameters(model), size_bytes(model)) == (24, 96)


def test_a_tensor_subclass_counts_by_the_tensors_inside():
    from torch.testing._internal.two_tensor import TwoTensor

    model = nn.Linear(3, 4, bias=False)
    model.weight = nn.Parameter(TwoTensor(torch.randn(4, 3), torch.randn(4, 3)))
    assert size_bytes(model) == 2 * 48


def test_int8_modules_count_all_their_weights_in_the_bytes_they_are_packed_in():
    linear = int8(nn.Linear(3, 4), nn.Linear)
    assert count_parameters(linear) == 16
    assert size_bytes(linear) == 12 + 4 * 4 + 4 + 8  # int8 weight, float bias, scale and zero point of the output
    lstm = int8(nn.LSTM(3, 4), nn.LSTM)
    assert count_parameters(lstm) == 4 * 4 * (3 + 4) + 2 * 16
    assert size_bytes(lstm) == 4 * 4 * (3 + 4) + 4 * 2 * 16


def test_a_static_int8_convolution_counts_its_weights_in_the_bytes_they_are_packed_in():
    model = static_int8(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 5, 5))
    assert count_parameters(model) == 4 * 3 * 9 + 4
    assert 4 * 3 * 9 + 16 <= size_bytes(model) <= 4 * 3 * 9 + 16 + 48


def test_a_sparse_weight_counts_by_its_indices_and_values():
    model = nn.Module()
    model.register_buffer("weight", torch.eye(4).to_sparse())
    assert size_bytes(model) == 4 * 2 * 8 + 4 * 4


# memory


def watched(model, *inputs):
    return traffic(lambda batch: batch.call(model), Batch(inputs), model)


def test_the_peak_is_weights_inputs_and_the_most_that_is_alive_between():
    model = nn.Sequential(nn.Linear(4, 100, bias=False), nn.ReLU(), nn.Linear(100, 2, bias=False))
    weights, inputs, wide = 4 * (400 + 200), 4 * 4, 4 * 100
    assert watched(model, torch.ones(1, 4)).peak_bytes == weights + inputs + 2 * wide


def test_a_longer_chain_has_no_higher_peak():
    def peak(depth):
        return watched(nn.Sequential(*[nn.Tanh() for _ in range(depth)]), torch.ones(10)).peak_bytes

    assert peak(3) == peak(30) == 40 * 3


def test_weights_that_the_call_does_not_need_are_resident_all_the_same():
    model = nn.ModuleDict({"used": nn.Linear(4, 4, bias=False), "idle": nn.Linear(4, 4, bias=False)})
    seen = traffic(lambda batch: batch.call(model["used"]), Batch((torch.ones(1, 4),)), model)
    assert seen.peak_bytes == 2 * 64 + 16 + 16


def test_a_backend_that_runs_a_copy_in_bf16_is_charged_for_the_copy_alone():
    model = nn.Linear(4, 4, bias=False)
    copy = nn.Linear(4, 4, bias=False).bfloat16()
    assert traffic(lambda batch: batch.call(copy), Batch((torch.ones(1, 4, dtype=torch.bfloat16),)), model).peak_bytes == 32 + 8 + 8


def test_each_operator_moves_what_it_reads_and_writes():
    assert watched(nn.Linear(4, 3, bias=False), torch.ones(2, 4)).moved_bytes == 4 * (12 + 8 + 6)
    assert watched(nn.Sequential(nn.ReLU(), nn.ReLU()), torch.ones(5)).moved_bytes == 2 * (20 + 20)
    assert watched(nn.ReLU(inplace=True), torch.ones(5)).moved_bytes == 20 + 20


def test_views_move_nothing_and_an_expanded_tensor_only_what_it_holds():
    assert watched(Function(lambda x: x.view(2, 3).t().unsqueeze(0)), torch.ones(6)).moved_bytes == 0
    assert watched(Function(lambda x: x.expand(100, 3).sum(0)), torch.ones(1, 3)).moved_bytes == 12 + 12


def test_a_look_up_moves_only_the_rows_it_takes():
    assert watched(nn.Embedding(1000, 4), torch.tensor([1, 2])).moved_bytes == 16 + 2 * 32


def test_a_call_that_torch_does_not_see_gives_no_traffic():
    assert traffic(lambda batch: None, Batch((torch.ones(1),)), nn.Identity()) is None


@pytest.mark.parametrize("name", zoo.MODELS)
def test_traffic_is_the_same_each_time(name):
    model, batch = zoo.MODELS[name](), zoo.batch(name)
    seen = [traffic(lambda batch: batch.call(model), batch, model) for _ in range(2)]
    assert seen[0] == seen[1]
    assert seen[0].peak_bytes > size_bytes(model)
