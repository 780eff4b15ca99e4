"""Multiply-adds of a model, against counts worked out by hand."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from kdkit.data import Batch
from kdkit.measurement.macs import count_macs
from kdkit.measurement.memory_traffic import traffic
from kdkit.measurement.size import count_parameters, size_bytes
from tests.fixtures import zoo
from tests.fixtures.counting import Function, int8, static_int8


def macs(model, *inputs, **named):
    return count_macs(model.eval(), Batch(inputs, named))


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


PRODUCTS = 2 * 12 * 12 * 32
"""Both products of attention, an item and layer."""


HUGGING_FACE = {
    "tiny_bert": 8 * (2 * (12 * (4 * 32 * 32 + 2 * 32 * 64) + PRODUCTS) + 32 * 32 + 32 * 2),
    "tiny_llama": 8 * (2 * (12 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + PRODUCTS) + 12 * 32 * 96),
    "tiny_gpt2": 8 * (2 * (12 * (4 * 32 * 32 + 2 * 32 * 128) + PRODUCTS) + 12 * 32 * 96),
}


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_macs_of_a_hugging_face_model_are_those_by_hand_whichever_attention_it_runs(name, attention):
    model = zoo.MODELS[name]()
    model.set_attn_implementation(attention)
    assert count_macs(model, zoo.batch(name)) == HUGGING_FACE[name]


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


@pytest.mark.slow
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
