"""Weights outside of the layers that a stage works on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdkit.models import linear_kinds, weights_elsewhere


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(4, 8, 16))


@pytest.mark.parametrize(
    "module", [Experts(), nn.GRU(8, 8), nn.LSTMCell(8, 8), nn.MultiheadAttention(8, 2), nn.Bilinear(4, 4, 4)], ids=lambda module: type(module).__name__
)
def test_modules_that_keep_matrices_themselves_are_named_with_their_share(module: nn.Module) -> None:
    found = weights_elsewhere(nn.Sequential(module, nn.Linear(8, 8)), linear_kinds())
    assert list(found) == ["0"]
    assert found["0"].startswith(f"{type(module).__name__} keeps its weights in ")


@pytest.mark.parametrize("module", [nn.Linear(8, 8), nn.Conv2d(4, 4, 3), nn.Embedding(8, 8), nn.LayerNorm((4, 4)), nn.BatchNorm1d(8), nn.ReLU()])
def test_ordinary_layers_are_not(module: nn.Module) -> None:
    assert weights_elsewhere(nn.Sequential(module), (nn.Linear,)) == {}


def test_tokens_and_positions_and_layers_that_the_user_spared_are_not() -> None:
    net = nn.Sequential(nn.Linear(8, 8), Experts())
    net.positions = nn.Parameter(torch.zeros(1, 20, 8))
    assert weights_elsewhere(net, (nn.Linear,), ("1",)) == {}


def test_the_originals_of_a_parametrized_layer_are_the_layers_own():
    net = nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(8, 8)), nn.Linear(8, 2))
    assert weights_elsewhere(net, (nn.Linear,)) == {}
