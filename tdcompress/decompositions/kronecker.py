"""A matrix as a sum of Kronecker products, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tdcompress.decompositions.algebra import check_rank
from tdcompress.decompositions.options import Solver, SVDOptions
from tdcompress.decompositions.reshape import Reshape, Reshaping, as_reshape, check_matrix
from tdcompress.decompositions.reshaped_options import KroneckerOptions
from tdcompress.decompositions.solution import Solution
from tdcompress.decompositions.svd import svd
from tdcompress.errors import CompressionError


@dataclass(frozen=True)
class KroneckerDecomposition:
    """A matrix as Σ_r left_r ⊗ right_r.

    Attributes:
        left: shape (rank, rows_1, columns_1).
        right: shape (rank, rows_2, columns_2), as long as `left` in every term.
        reshape: how the rows and columns of the matrix are those of the two factors.
        solution: what the solver did.
    """

    left: Tensor
    right: Tensor
    reshape: Reshape
    solution: Solution

    @property
    def rank(self) -> int:
        """The number of terms."""
        return self.left.shape[0]

    def to_dense(self) -> Tensor:
        """The matrix that the factors stand for."""
        return self.reshape.to_matrix(torch.einsum("rai,rbj->aibj", self.left, self.right))


def kronecker_limit(reshape: Reshape) -> int:
    """The number of terms at which every sum is exact: the smaller factor's size.

    >>> kronecker_limit(Reshape((2, 8), (4, 4)))
    8
    """
    return min(reshape.sizes)


def kronecker(
    matrix: Tensor, rank: int, reshape: Reshaping = "balanced", *, solver: Solver = None
) -> KroneckerDecomposition:
    """Write a matrix as a sum of `rank` Kronecker products.

    With the entries of either factor along one side, a sum of Kronecker products is a matrix of low rank (Van Loan &
    Pitsianis 1993). So its truncated SVD gives the best sum there is for this shape: the squared error is the sum of
    the squared singular values that are cut. Deterministic.

    Args:
        matrix: shape (rows, columns).
        rank: how many terms, up to the number of entries of the smaller factor.
        reshape: the shapes of the two factors: `((rows_1, rows_2), (columns_1, columns_2))`, a `Reshape`, which may be
            strided, or `"balanced"`.
        solver: None for our own, also given as `KroneckerOptions`, or `"tensorly"` for tensorly's SVD.

    Returns:
        The factors in the matrix's dtype, with the solver's report.

    Raises:
        CompressionError: no finite floating-point matrix, or the rank or the reshape do not fit it.

    >>> found = kronecker(torch.kron(torch.ones(2, 4), torch.eye(3)), 1, ((2, 3), (4, 3)))
    >>> found.left.shape, found.right.shape, round(found.solution.relative_error, 6)
    (torch.Size([1, 2, 4]), torch.Size([1, 3, 3]), 0.0)
    """
    check_matrix(matrix, "kronecker")
    shape = as_reshape(reshape, (matrix.shape[0], matrix.shape[1]), 2)
    if shape.cores != 2:
        raise CompressionError(f"a Kronecker product has two factors, and the reshape is for {shape.cores}.")
    check_rank([rank], [kronecker_limit(shape)], "Kronecker")
    backend = SVDOptions(backend=KroneckerOptions.of(solver).backend)
    rearranged = svd(shape.to_tensor(matrix.detach()), rank, rows=(0, 1), solver=backend)
    left, right = (side.movedim(-1, 0) for side in rearranged.balanced_factors())
    return KroneckerDecomposition(left, right, shape, rearranged.solution)
