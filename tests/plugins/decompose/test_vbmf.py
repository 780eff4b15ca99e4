"""Variational Bayesian matrix factorization: planted ranks, pure noise, and the noise variance that it minimises."""

from __future__ import annotations

import pytest
import torch

from kdkit_decompose.vbmf import estimate_rank


def planted(rows: int, columns: int, rank: int, noise: float, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(rows, rank, generator=random) @ torch.randn(rank, columns, generator=random) + noise * torch.randn(rows, columns, generator=random)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rows", "columns", "rank", "noise"), [(30, 80, 4, 0.3), (64, 576, 10, 1.0), (64, 64, 5, 0.5), (80, 30, 4, 0.3)])
def test_a_planted_rank_is_found(rows, columns, rank, noise, seed):
    assert estimate_rank(planted(rows, columns, rank, noise, seed)) == rank


@pytest.mark.parametrize("seed", range(3))
def test_noise_has_rank_0_whatever_its_scale(seed):
    assert [estimate_rank(scale * planted(16, 100, 0, 1.0, seed)) for scale in (1e-4, 1.0, 1e4)] == [0, 0, 0]


def test_signals_below_the_noise_are_not_found():
    assert estimate_rank(planted(50, 60, 20, 6.0, 0)) < 20


def test_a_matrix_without_noise_has_its_own_rank():
    assert estimate_rank(planted(20, 30, 3, 0.0, 0).double()) == 3
    assert estimate_rank(torch.zeros(4, 6)) == 0
