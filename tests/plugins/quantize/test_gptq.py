"""GPTQ: against the update of the paper done naively, with an inverse for every column."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdkit.data import Batch
from kdkit_quantize.gptq import DAMPING, round_with_compensation
from kdkit_quantize.group_quantization import GroupCode, dequantize, round_to_nearest
from kdkit_quantize.input_moments import input_columns, input_moments


def case(rows: int = 5, columns: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and correlated inputs."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=random), torch.randn(300, 4, generator=random) @ torch.randn(4, columns, generator=random)


def naive(weight: torch.Tensor, bits: int, group: int, moment: torch.Tensor) -> torch.Tensor:
    """Each column rounded in turn; all later ones follow the inverse of the moment that is left (equation 2 of the paper)."""
    work, hessian = weight.double().clone(), moment.double().clone()
    hessian += DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian))
    result = torch.empty_like(work)
    for column in range(work.shape[1]):
        if column % group == 0:
            grid = round_to_nearest(work[:, column : column + group].float(), bits, group)
        scale, zero = grid.scale[:, 0].double(), grid.zero[:, 0].double()
        result[:, column] = ((work[:, column] / scale + zero).round().clamp(0, 2**bits - 1) - zero) * scale
        inverse = torch.linalg.inv(hessian[column:, column:])
        error = (work[:, column] - result[:, column]) / inverse[0, 0]
        work[:, column:] -= error[:, None] * inverse[0]
    return result.float()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group", [4, 5, 12])
def test_it_is_the_update_of_the_paper_done_naively(bits, group):
    weight, x = case()
    found = dequantize(round_with_compensation(weight, bits, group, x.T @ x / len(x)))
    torch.testing.assert_close(found, naive(weight, bits, group, x.T @ x / len(x)), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_products_with_inputs_change_less_than_after_rounding_to_nearest(bits):
    weight, x = case(16, 64)

    def error(code: GroupCode) -> float:
        return float((x @ (dequantize(code) - weight).T).square().mean())

    assert error(round_with_compensation(weight, bits, 32, x.T @ x / len(x))) < 0.7 * error(round_to_nearest(weight, bits, 32))


def test_independent_inputs_of_one_size_leave_nothing_to_make_up_for():
    weight, _ = case()
    found, plain = round_with_compensation(weight, 4, 6, torch.eye(12)), round_to_nearest(weight, 4, 6)
    assert torch.equal(found.codes, plain.codes)


def test_inputs_that_are_always_zero_do_no_harm():
    weight, x = case()
    x[:, 3:7] = 0
    assert torch.isfinite(dequantize(round_with_compensation(weight, 4, 6, x.T @ x / len(x)))).all()


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(6, 5), torch.randn(2, 3, 6)),
        (nn.Conv2d(3, 5, 3, stride=2, padding=1, dilation=2), torch.randn(2, 3, 9, 8)),
        (nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), torch.randn(2, 3, 6, 6)),
        (nn.Conv1d(3, 5, 3, padding="same"), torch.randn(2, 3, 9)),
    ],
)
def test_a_layer_is_the_product_of_its_input_columns_with_its_weight(layer, x):
    output = layer(x)
    product = input_columns(layer, x) @ layer.weight.flatten(1).T + layer.bias
    expected = output.flatten(2).transpose(1, 2).reshape(-1, 5) if output.dim() > 2 and not isinstance(layer, nn.Linear) else output.reshape(-1, 5)
    torch.testing.assert_close(product, expected, atol=1e-5, rtol=1e-4)


def test_moments_are_means_over_all_positions_of_all_batches_and_hooks_go_away():
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    x = torch.randn(10, 4)
    found = input_moments(net, {"0": net[0], "1": net[1]}, [Batch((x[:7],)), Batch((x[7:],))])
    torch.testing.assert_close(found["0"], x.T @ x / 10)
    torch.testing.assert_close(found["1"], net[0](x).detach().T @ net[0](x).detach() / 10)
    assert not net[0]._forward_pre_hooks
