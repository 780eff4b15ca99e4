"""Derived inputs: a batch that a model without data accepts."""

import pytest
import torch
from torch import nn

from kdkit.data import Batch
from kdkit.models import derive_inputs


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(5, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.gru(x)[0][:, -1])


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(7, 2),
        nn.Sequential(nn.Conv2d(3, 4, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 2)),
        nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU()),
        nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 2)),
        nn.Linear(7, 2).bfloat16(),
        Recurrent(),
    ],
)
def test_the_batch_fits_the_model(model):
    batch = derive_inputs(model)
    assert isinstance(batch, Batch)
    batch.call(model)


def test_a_model_that_takes_something_else_gets_no_batch():
    class Odd(nn.Module):
        def forward(self, text):
            return torch.tensor(len(text + ""))

    assert derive_inputs(Odd()) is None
