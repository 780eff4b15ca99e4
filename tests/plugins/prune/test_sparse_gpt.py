"""SparseGPT equals its authors' code, and its reconstruction lowers the error of the outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdkit_prune.sparse_gpt import reconstruct
from kdkit_prune.sparsity_patterns import SemiStructured


def authors(weight: Tensor, hessian: Tensor, sparsity: float, prunen: int = 0, prunem: int = 0, percdamp: float = 0.01, blocksize: int = 128) -> Tensor:
    """`fasterprune` of the authors' sparsegpt.py, line by line; prunen weights of prunem go. Its threshold takes one weight more than the share, which is corrected."""
    w, h = weight.clone(), hessian.clone()
    dead = torch.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    diag = torch.arange(w.shape[1])
    h[diag, diag] += percdamp * torch.mean(torch.diag(h))
    hinv = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    for i1 in range(0, w.shape[1], blocksize):
        i2 = min(i1 + blocksize, w.shape[1])
        w1, q1, err1 = w[:, i1:i2].clone(), torch.zeros(w.shape[0], i2 - i1), torch.zeros(w.shape[0], i2 - i1)
        hinv1 = hinv[i1:i2, i1:i2]
        if prunen == 0:
            tmp = w1**2 / torch.diag(hinv1).reshape((1, -1)) ** 2
            thresh = torch.sort(tmp.flatten())[0][int(tmp.numel() * sparsity)]
            mask1 = tmp < thresh
        else:
            mask1 = torch.zeros_like(w1) == 1
        for i in range(i2 - i1):
            column, d = w1[:, i], hinv1[i, i]
            if prunen != 0 and i % prunem == 0:
                tmp = w1[:, i : (i + prunem)] ** 2 / torch.diag(hinv1)[i : (i + prunem)].reshape((1, -1)) ** 2
                mask1.scatter_(1, i + torch.topk(tmp, prunen, dim=1, largest=False)[1], True)
            q = column.clone()
            q[mask1[:, i]] = 0
            q1[:, i] = q
            error = (column - q) / d
            w1[:, i:] -= error.unsqueeze(1).matmul(hinv1[i, i:].unsqueeze(0))
            err1[:, i] = error
        w[:, i1:i2] = q1
        w[:, i2:] -= err1.matmul(hinv[i1:i2, i2:])
    return w


def layer(outputs: int, inputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight and correlated inputs (4 x inputs, inputs)."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=random) / inputs**0.5
    return torch.randn(outputs, inputs, generator=random), torch.randn(4 * inputs, inputs, generator=random) @ mix


@pytest.mark.parametrize(("sparsity", "inputs"), [(0.5, 64), (0.8, 300), (0.25, 128)])
def test_single_weights_are_those_of_the_authors_code(sparsity, inputs):
    weight, x = layer(24, inputs)
    ours, keep = reconstruct(weight, x.T @ x, sparsity)
    torch.testing.assert_close(ours, authors(weight, x.T @ x, sparsity), atol=2e-4, rtol=2e-3)
    assert torch.equal(ours == 0, ~keep)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4)])
def test_n_of_m_are_those_of_the_authors_code(n, m):
    weight, x = layer(16, 192)
    ours, _ = reconstruct(weight, x.T @ x, 0.5, SemiStructured(n, m))
    torch.testing.assert_close(ours, authors(weight, x.T @ x, 0.5, prunen=m - n, prunem=m), atol=2e-4, rtol=2e-3)


def test_the_scale_of_the_moment_does_not_matter():
    weight, x = layer(8, 32)
    one, other = reconstruct(weight, x.T @ x, 0.5), reconstruct(weight, x.T @ x / 1000, 0.5)
    torch.testing.assert_close(one[0], other[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_the_outputs_are_nearer_than_without_reconstruction(seed):
    weight, x = layer(16, 96, seed)
    ours, keep = reconstruct(weight, x.T @ x, 0.5)
    assert (x @ (ours - weight).T).norm() < 0.9 * (x @ (weight * keep - weight).T).norm()


def test_inputs_that_are_always_zero_lose_their_weights_first():
    weight, x = layer(8, 32)
    x[:, 5:9] = 0
    ours, keep = reconstruct(weight, x.T @ x, 0.5)
    assert not keep[:, 5:9].any()
    assert bool(ours.isfinite().all())
