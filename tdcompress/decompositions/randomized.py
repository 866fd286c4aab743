"""Leading singular vectors of a large matrix by randomised subspace iteration, refined until the error is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tdcompress.decompositions.algebra import eigh, gram, leading_subspace, squared_norm

_SMALLEST = 1024  # rows, below which all eigenvectors of the Gram matrix are found at once
_USUAL = 12  # rounds that slow spectra need,
_ROUNDS = 16  # and that are made at the most
_MARGIN = 5e-4  # of the error, by which it may still fall when the rounds end
_FINEST = 1e-2  # relative error below which float32 does not tell how much of the norm was found


def truncating_subspace(matrix: Tensor, rank: int) -> Tensor:
    """An orthonormal basis, (rows, rank), onto which a projection loses no more than 0.1 % above the least error.

    The leading left singular vectors, in the order of their values: from all eigenvectors of the Gram matrix, or where
    that is clearly faster by subspace iteration (Halko, Martinsson & Tropp 2011, algorithm 4.4) with the matrix or its
    Gram matrix. What the basis finds of the norm says what the error is. It falls geometrically from round to round,
    and what is left of the fall is foreseen from its last two steps. The start is drawn from a seed of its own.

    Args:
        matrix: (rows, columns), no more rows than columns.
        rank: how many vectors.
    """
    subspace = _iterated(matrix, rank) if matrix.dtype == torch.float32 and len(matrix) >= _SMALLEST else None
    return leading_subspace(matrix, rank) if subspace is None else subspace


def _iterated(matrix: Tensor, rank: int) -> Tensor | None:
    """None where it would take too long, or the error is too small to be known."""
    rows, columns = matrix.shape
    width = rank + max(16, rank // 4)
    # Operations; those in float64 count twice, and an eigenvector's are slow.
    by_matrix = _USUAL * 4 * rows * columns * width
    squared = 4 * rows**2 * columns
    by_gram = squared + _USUAL * rows * width * (2 * rows + 4 * width)
    if min(by_matrix, by_gram) > 0.7 * (squared + 19 * rows**3):
        return None
    total = squared_norm(matrix)
    if not 1e-30 < total < 1e30:  # float32 would leave its range on the way
        return None
    symmetric = gram(matrix).float() if by_gram < by_matrix else None
    basis = torch.randn(rows, width, generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(matrix.device)
    errors: list[float] = []
    while True:
        basis, _ = torch.linalg.qr(basis)
        image = matrix @ (matrix.mT @ basis) if symmetric is None else symmetric @ basis
        squares, rotation = eigh(basis.mT.double() @ image.double())
        rotation = rotation.to(basis)
        errors.append(math.sqrt(max(0.0, 1 - float(squares[-rank:].sum()) / total)))
        left = _rounds_left(errors)
        if left == 0:
            return basis @ rotation.flip(-1)[:, :rank]
        if errors[-1] < _FINEST or len(errors) + left > _ROUNDS:
            return None
        basis = image @ rotation  # each direction a column of its own: small ones are not lost among large ones


def _rounds_left(errors: list[float]) -> int:
    """How many more rounds it takes until what is left of the fall is within the margin."""
    if len(errors) < 3:
        return 1
    before, last = errors[-3] - errors[-2], errors[-2] - errors[-1]
    if last <= 0:
        return 0
    factor = min(last / before, 0.99) if before > 0 else 0.99
    rest = last * factor / (1 - factor)
    goal = _MARGIN * errors[-1]
    return 0 if rest <= goal else math.ceil(math.log(goal / rest) / math.log(factor)) if goal else _ROUNDS
