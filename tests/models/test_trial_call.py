"""Trial calls: whether a model can be called with a batch, and what to do if not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdkit.data import Batch, as_batch
from kdkit.errors import KdError
from kdkit.models.trial_call import try_call
from tests.fixtures.datasets import X, Y


class Needy(nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return scale * (left + right)


def test_a_model_that_fits_gives_its_output_for_the_first_items() -> None:
    assert try_call(Needy(), Batch((torch.zeros(9, 3), torch.zeros(9, 3)))).shape == (2, 3)


def test_calling_leaves_modes_and_statistics_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()).train()
    before = model[0].running_mean.clone()  # type: ignore[union-attr]
    try_call(model, Batch((torch.randn(8, 3),)))
    assert model.training
    assert model[1].training
    assert torch.equal(before, model[0].running_mean)  # type: ignore[arg-type]


def test_a_model_that_wants_other_inputs_is_refused_with_its_signature_and_the_batch() -> None:
    with pytest.raises(KdError) as caught:
        try_call(Needy(), as_batch((X, Y)))
    reported = str(caught.value)
    assert "Needy can't take such a batch: missing a required argument: 'right'" in reported
    assert "Needy.forward(left, right, scale=1.0)" in reported
    assert "the batch gives float32 (2, 3); labels int64 (2,)" in reported


def test_a_key_that_forward_does_not_have_is_named() -> None:
    with pytest.raises(KdError, match="unexpected keyword argument 'middle'"):
        try_call(Needy(), as_batch({"left": X, "right": X, "middle": X}))


@pytest.mark.parametrize(
    ("model", "batch", "hint"),
    [
        (nn.Linear(3, 1), Batch((torch.ones(2, 3, dtype=torch.uint8),)), "scale them"),
        (nn.Linear(3, 1).double(), Batch((X,)), r"model\.float\(\)"),
        (nn.Linear(4, 1), Batch((X,)), r"the batch gives float32 \(2, 3\)"),
        (nn.Bilinear(3, 2, 1), Batch((X, X)), "the last part of a tuple is the labels"),
    ],
)
def test_a_model_that_fails_on_the_batch_says_what_it_was_given_and_what_to_do(model: nn.Module, batch: Batch, hint: str) -> None:
    with pytest.raises(KdError, match=f"(?s){type(model).__name__} fails on the first items: .*{hint}") as caught:
        try_call(model, batch)
    assert isinstance(caught.value.__cause__, RuntimeError)
