"""Truncated singular value decomposition: two factors, and the one decomposition whose best is known."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tdcompress.decompositions import bridge
from tdcompress.decompositions.algebra import (
    check_rank,
    check_tensor,
    ratio_of_norms,
    squared_norm,
    working,
)
from tdcompress.decompositions.options import Solver, SVDOptions
from tdcompress.decompositions.randomized import truncating_subspace
from tdcompress.decompositions.solution import Solution
from tdcompress.errors import CompressionError
from tdcompress.threads import threads_for

_ROWS = 1 << 24  # elements of the approximation that are looked at together


@dataclass(frozen=True)
class SVDecomposition:
    """A tensor, as the matrix of some of its modes against the others, as `left · diag(values) · rightᵀ`.

    Attributes:
        left: shape (*sizes of the row modes, rank), orthonormal columns as a matrix.
        values: the largest singular values, shape (rank,), largest first.
        right: shape (*sizes of the other modes, rank), orthonormal columns where the value is not zero.
        rows: the modes that `left` belongs to.
        solution: what the solver did.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    rows: tuple[int, ...]
    solution: Solution

    @property
    def rank(self) -> int:
        """The number of singular values that are kept."""
        return self.values.shape[0]

    def balanced_factors(self) -> tuple[Tensor, Tensor]:
        """`left` and `right`, each times the roots of the values, so that they alone give the tensor."""
        share = self.values.sqrt()
        return self.left * share, self.right * share

    def to_dense(self) -> Tensor:
        """The tensor that the factors stand for."""
        left, right = self.balanced_factors()
        return torch.tensordot(left, right, dims=([-1], [-1])).movedim(tuple(range(len(self.rows))), self.rows)


def svd(tensor: Tensor, rank: int, *, rows: Sequence[int] = (0,), solver: Solver = None) -> SVDecomposition:
    """Decompose by truncated SVD: some modes against the others.

    Nothing of this rank is nearer (Eckart & Young 1936): the squared error is the sum of the squared singular values
    that are cut. They are found from the Gram matrix of the smaller side in float64, so the error may be above that by
    about 1e-8 of the largest. Deterministic.

    Args:
        tensor: shape (I_0, …, I_N), order ≥ 2.
        rank: how many singular values to keep, up to the smaller side of the matrix.
        rows: the modes that make up the rows, in this order; the others make up the columns, in theirs.
        solver: None for the defaults, `SVDOptions`, or `"tensorly"` for tensorly's.

    Returns:
        Vectors and values in the tensor's dtype, with the solver's report.

    Raises:
        CompressionError: the tensor is not finite or not floating point, or rows or rank not feasible.

    >>> found = svd(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2)
    >>> found.values, round(found.solution.relative_error, 4)
    (tensor([3., 2.]), 0.2673)
    >>> found = svd(torch.ones(8, 6, 3, 3), 5, rows=(0, 3))
    >>> found.left.shape, found.right.shape
    (torch.Size([8, 3, 5]), torch.Size([6, 3, 5]))
    """
    check_tensor(tensor)
    tensor = tensor.detach()
    rows = tuple(rows)
    if len(set(rows)) != len(rows) or not set(rows) < set(range(tensor.ndim)) or not rows:
        raise CompressionError(f"rows must be some but not all of the modes 0 .. {tensor.ndim - 1}, got {rows}.")
    columns = [mode for mode in range(tensor.ndim) if mode not in rows]
    sizes = [[tensor.shape[mode] for mode in side] for side in (rows, columns)]
    check_rank([rank], [min(map(math.prod, sizes))], "SVD")
    options = SVDOptions.of(solver)
    began = time.perf_counter()
    matrix = working(tensor.permute(*rows, *columns).reshape(math.prod(sizes[0]), -1))
    if options.backend == "tensorly":
        left, values, right = bridge.svd(matrix, rank)
    else:
        with threads_for(matrix.numel()):
            left, values, right = _solve(matrix, rank)
    left, right = (side.reshape(*size, rank).to(tensor.dtype) for side, size in zip((left, right), sizes, strict=True))
    decomposition = SVDecomposition(left, values.to(tensor.dtype), right, rows, Solution(0.0))
    error, seconds = _error(matrix, decomposition), time.perf_counter() - began
    return replace(decomposition, solution=Solution(error, seconds=seconds))


def _error(matrix: Tensor, decomposition: SVDecomposition) -> float:
    """The relative error of the factors as they are, some rows at a time."""
    left, right = (side.reshape(-1, decomposition.rank).to(matrix) for side in decomposition.balanced_factors())
    count = max(1, _ROWS // matrix.shape[1])
    pairs = zip(torch.split(matrix, count), torch.split(left, count), strict=True)
    return ratio_of_norms(sum(squared_norm(some - one @ right.mT) for some, one in pairs), matrix)


def _solve(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading vectors of the smaller side, and what the matrix makes of them on the other."""
    if matrix.shape[0] > matrix.shape[1]:
        right, values, left = _solve(matrix.mT, rank)
        return left, values, right
    left = truncating_subspace(matrix, rank).to(matrix)
    right = matrix.mT @ left
    values = torch.linalg.vector_norm(right, dim=0)
    return left, values, right / values.clamp(min=torch.finfo(values.dtype).tiny)
