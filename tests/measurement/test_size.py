"""Parameters and bytes of a model."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from torch import nn

from kdkit.data import Batch
from kdkit.measurement.macs import count_macs
from kdkit.measurement.size import count_parameters, size_bytes
from tests.fixtures import zoo
from tests.fixtures.counting import int8, static_int8


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


def test_weights_that_a_buffer_encodes_count_as_parameters_and_by_the_bytes_of_the_buffer():
    class Signs(nn.Module):
        kdkit_encoded = {"bits": 16}

        def __init__(self):
            super().__init__()
            self.register_buffer("bits", torch.zeros(2, dtype=torch.uint8))

    model = nn.Sequential(Signs(), nn.Linear(4, 1))
    model.append(model[0])
    assert (count_parameters(model), size_bytes(model)) == (16 + 5, 2 + 20)


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
