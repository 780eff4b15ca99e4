"""Empirical variational Bayesian matrix factorization: the rank of a matrix that is observed with noise of unknown variance.

Nakajima, Sugiyama, Babacan, Tomioka, "Global Analytic Solution of Fully-observed Variational Bayesian Matrix Factorization", JMLR 2013.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

Array = np.ndarray


def estimate_rank(matrix: Tensor) -> int:
    """The number of singular values of a matrix (rows, columns) that are no noise; 0 if all are.

    >>> import torch
    >>> random = torch.Generator().manual_seed(0)
    >>> signal = torch.randn(30, 4, generator=random) @ torch.randn(4, 80, generator=random)
    >>> estimate_rank(signal + 0.3 * torch.randn(30, 80, generator=random))
    4
    """
    from scipy.optimize import minimize_scalar

    rows, columns = sorted(matrix.shape)
    squares = np.linalg.svd(matrix.detach().double().cpu().numpy(), compute_uv=False) ** 2
    if not squares.any():
        return 0
    squares *= rows * columns / squares.sum()
    ratio = rows / columns
    least_signal = 2.5129 * math.sqrt(ratio)
    threshold = (1 + least_signal) * (1 + ratio / least_signal)
    first_noise = min(math.ceil(rows / (1 + ratio)), rows) - 1
    most, least = 1.0, max(squares[first_noise] / (columns * threshold), squares[first_noise:].mean() / columns)
    if least <= 0:
        return int((squares > 1e-10 * squares[0]).sum())
    found = minimize_scalar(_free_energy, bounds=(least, max(most, least * (1 + 1e-9))), args=(squares, columns, ratio, threshold), method="bounded")
    return int((squares > columns * found.x * threshold).sum())


def _free_energy(variance: float, squares: Array, columns: int, ratio: float, threshold: float) -> float:
    """What the noise variance minimises, equation 45 up to constants; squares (rows,) of the singular values."""
    scaled = squares / (columns * variance)
    noise, signal = scaled[scaled <= threshold], scaled[scaled > threshold]
    excess = 0.5 * (signal - (1 + ratio) + np.sqrt((signal - (1 + ratio)) ** 2 - 4 * ratio))
    of_signal = signal - excess + np.log((excess + 1) / signal) + ratio * np.log(excess / ratio + 1)
    return float((noise - np.log(np.maximum(noise, 1e-300))).sum() + of_signal.sum())
