"""Tensor-train matrix: a chain of cores, each with an axis of the rows and one of the columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tdcompress.decompositions.algebra import chained
from tdcompress.decompositions.options import Solver, TTOptions
from tdcompress.decompositions.reshape import Reshape, Reshaping, as_reshape, check_matrix
from tdcompress.decompositions.reshaped_options import TTMOptions
from tdcompress.decompositions.solution import Solution
from tdcompress.decompositions.tensor_train import tensor_train, tensor_train_limits


@dataclass(frozen=True)
class TTMDecomposition:
    """A matrix as a product of cores.

    Attributes:
        cores: shapes (r_{k-1}, rows_k, columns_k, r_k) with r_0 = r_d = 1.
        reshape: how the rows and columns of the matrix are those of the cores.
        solution: what the solver did.
    """

    cores: tuple[Tensor, ...]
    reshape: Reshape
    solution: Solution

    @property
    def rank(self) -> tuple[int, ...]:
        """The inner ranks (r_1, …, r_{d-1})."""
        return tuple(core.shape[-1] for core in self.cores[:-1])

    def to_dense(self) -> Tensor:
        """The matrix that the cores stand for."""
        return self.reshape.to_matrix(chained(self.cores).squeeze(0).squeeze(-1))


def ttm_limits(reshape: Reshape) -> tuple[int, ...]:
    """The largest feasible inner ranks, at which every train is exact.

    >>> ttm_limits(Reshape((2, 8, 2), (4, 4, 3)))
    (8, 6)
    """
    return tensor_train_limits(reshape.sizes)


def ttm(
    matrix: Tensor, rank: Sequence[int], reshape: Reshaping = "balanced", *, solver: Solver = None
) -> TTMDecomposition:
    """Decompose a matrix, whose rows and columns are grids, as a tensor train (Oseledets 2010; Novikov et al. 2015).

    The axes of core k, rows_k and columns_k, are taken as one mode of size rows_k · columns_k; the tensor of these
    modes is decomposed by TT-SVD, refined by alternating least squares, see `tensor_train`. The error of TT-SVD is
    within √(d−1) of the best of d cores at these ranks. With two cores it is the sum of Kronecker products, and the
    best there is. Deterministic.

    Args:
        matrix: shape (rows, columns).
        rank: the inner ranks (r_1, …, r_{d-1}); their number says how many cores there are.
        reshape: the shapes of the cores: `((rows_1, …, rows_d), (columns_1, …, columns_d))`, a `Reshape`, which may be
            strided, or `"balanced"`.
        solver: None for the defaults of `TTMOptions`, options (`max_iter=0` for TT-SVD alone), or `"tensorly"` for
            tensorly's TT-SVD.

    Returns:
        The cores in the matrix's dtype, all but the last left-orthonormal, with the solver's report.

    Raises:
        CompressionError: no finite floating-point matrix, or the rank or the reshape do not fit it.

    >>> import torch
    >>> found = ttm(torch.ones(12, 30), (1, 1), ((2, 2, 3), (5, 3, 2)))
    >>> [tuple(core.shape) for core in found.cores]
    [(1, 2, 5, 1), (1, 2, 3, 1), (1, 3, 2, 1)]
    """
    check_matrix(matrix, "ttm")
    shape = as_reshape(reshape, (matrix.shape[0], matrix.shape[1]), len(rank) + 1)
    tensor = shape.to_tensor(matrix.detach()).reshape(shape.sizes)
    options = TTMOptions.of(solver)
    own = TTOptions(max_iter=options.max_iter, tol=options.tol)
    sweeps = own if options.backend == "own" else TTOptions.tensorly()
    train = tensor_train(tensor, rank, solver=sweeps)
    pairs = zip(train.cores, shape.rows, shape.columns, strict=True)
    cores = tuple(core.reshape(core.shape[0], out, inner, core.shape[2]) for core, out, inner in pairs)
    return TTMDecomposition(cores, shape, train.solution)
