"""The rank of a matrix under noise by empirical variational Bayes, in closed form but for the noise."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

_TAU = 2.5129  # of the threshold, for a square matrix (Nakajima et al. 2013, theorem 2)


def vbmf_rank(matrix: Tensor) -> int:
    """How many singular values stand out from noise whose variance is estimated with them.

    Analytic solution of empirical variational Bayesian matrix factorization (Nakajima, Sugiyama, Babacan & Tomioka
    2013, JMLR 14); Kim et al. (2016) take it for the ranks of Tucker.

    Args:
        matrix: (rows, columns).

    >>> generator = torch.Generator().manual_seed(0)
    >>> low = torch.randn(60, 4, generator=generator) @ torch.randn(4, 90, generator=generator)
    >>> vbmf_rank(low + 0.1 * torch.randn(60, 90, generator=generator))
    4
    """
    rows, columns = sorted(matrix.shape)
    squares = torch.linalg.svdvals(matrix.double()).square().numpy()
    ratio = rows / columns
    tau = _TAU * math.sqrt(ratio)
    edge = (1 + tau) * (1 + ratio / tau)
    place = min(math.ceil(rows / (1 + ratio)) - 1, rows) - 1
    lowest = max(squares[place + 1] / (columns * edge), squares[place + 1 :].mean() / columns)
    highest = squares.sum() / (rows * columns)
    found = minimize_scalar(
        _free_energy, args=(columns, ratio, edge, squares), bounds=(lowest, highest), method="bounded"
    )
    return int((squares > columns * found.x * edge).sum())


def _free_energy(variance: float, columns: int, ratio: float, edge: float, squares: np.ndarray) -> float:
    values = squares / (columns * variance)
    noise, signal = values[values <= edge], values[values > edge]
    shifted = signal - (1 + ratio)
    tau = (shifted + np.sqrt(np.maximum(shifted**2 - 4 * ratio, 0))) / 2
    kept = signal - tau + np.log((tau + 1) / signal) + ratio * np.log(tau / ratio + 1)
    return float((noise - np.log(np.maximum(noise, 1e-300))).sum() + kept.sum())
