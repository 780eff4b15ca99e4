"""Peak memory, and the bytes that operators move."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdkit.data import Batch
from kdkit.measurement.memory_traffic import traffic
from kdkit.measurement.size import size_bytes
from tests.fixtures import zoo
from tests.fixtures.counting import Function


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
