"""Block low rank: a matrix cut into a grid of blocks, each of which is cut to the same rank."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tdcompress.decompositions import bridge
from tdcompress.decompositions.algebra import check_rank, eigh, gram, relative_error, working
from tdcompress.decompositions.options import Solver
from tdcompress.decompositions.reshape import Reshape, Reshaping, as_reshape, balanced_factors, check_matrix
from tdcompress.decompositions.reshaped_options import BLROptions
from tdcompress.decompositions.solution import Solution
from tdcompress.errors import CompressionError
from tdcompress.threads import threads_for


@dataclass(frozen=True)
class BLRDecomposition:
    """A matrix whose blocks are products of two thin matrices, `left_{k,i} · right_{k,i}`.

    Attributes:
        left: shape (row blocks, column blocks, rows of a block, rank).
        right: shape (row blocks, column blocks, rank, columns of a block), as long as `left` in every term.
        reshape: how the matrix is cut: its first factors count the blocks, its second ones are the size of a block.
        solution: what the solver did.
    """

    left: Tensor
    right: Tensor
    reshape: Reshape
    solution: Solution

    @property
    def rank(self) -> int:
        """The rank of every block."""
        return self.left.shape[-1]

    def to_dense(self) -> Tensor:
        """The matrix that the blocks stand for."""
        return self.reshape.to_matrix(self.left @ self.right)


def blr_limit(reshape: Reshape) -> int:
    """The rank at which every matrix is exact: the smaller side of a block.

    >>> blr_limit(Reshape((4, 8), (2, 6)))
    6
    """
    return min(reshape.rows[1], reshape.columns[1])


def monarch_reshape(rows: int, columns: int) -> Reshape:
    """The balanced blocks of Monarch (Dao et al. 2022): neighbours in the columns, strided in the rows.

    >>> monarch_reshape(16, 36)
    Reshape(rows=(4, 4), columns=(6, 6), strided_rows=True, strided_columns=False)
    """
    return Reshape(balanced_factors(rows, 2), balanced_factors(columns, 2), strided_rows=True)


def blr(matrix: Tensor, rank: int, reshape: Reshaping = "balanced", *, solver: Solver = None) -> BLRDecomposition:
    """Cut a matrix into blocks and each block to its `rank` largest singular values.

    Two block-diagonal matrices with a shuffle between them: what Qiu et al. (2024) call block tensor train, and at rank
    one Monarch (Dao et al. 2022). The blocks do not know of each other, so their truncated SVDs are the best there is
    for this grid, and the squared error is the sum of all squared singular values that are cut. Deterministic.

    Args:
        matrix: shape (rows, columns).
        rank: of every block, up to its smaller side.
        reshape: `((row blocks, rows of a block), (column blocks, columns of a block))`, a `Reshape`, or `"balanced"`
            for Monarch's. A block of a strided side takes every n-th row or column instead of neighbours, where n is
            the number of blocks.
        solver: None for our own, also given as `BLROptions`, or `"tensorly"` for tensorly's SVD of every block.

    Returns:
        The factors in the matrix's dtype, with the solver's report.

    Raises:
        CompressionError: no finite floating-point matrix, or the rank or the reshape do not fit it.

    >>> found = blr(torch.ones(12, 30), 1, ((3, 4), (5, 6)))
    >>> found.left.shape, found.right.shape, round(found.solution.relative_error, 6)
    (torch.Size([3, 5, 4, 1]), torch.Size([3, 5, 1, 6]), 0.0)
    """
    check_matrix(matrix, "blr")
    rows, columns = matrix.shape
    given = monarch_reshape(rows, columns) if reshape == "balanced" else reshape
    shape = as_reshape(given, (rows, columns), 2)
    if shape.cores != 2:
        raise CompressionError(f"blocks have two factors on either side, their number and size; got {shape.cores}.")
    check_rank([rank], [blr_limit(shape)], "block")
    options, began = BLROptions.of(solver), time.perf_counter()
    blocks = shape.to_tensor(matrix.detach())  # the grid's axes are those of the first core
    with threads_for(matrix.numel()):
        solve = _truncated if options.backend == "own" else _by_tensorly
        left, right = solve(working(blocks), rank)
    decomposition = BLRDecomposition(left.to(matrix.dtype), right.to(matrix.dtype), shape, Solution(0.0))
    error, seconds = relative_error(blocks, decomposition.left @ decomposition.right), time.perf_counter() - began
    return replace(decomposition, solution=Solution(error, seconds=seconds))


def _truncated(blocks: Tensor, rank: int) -> tuple[Tensor, Tensor]:  # (…, i, j) -> (…, i, rank), (…, rank, j)
    """The leading vectors of the smaller side times what the blocks make of them, as long as each other."""
    if blocks.shape[-2] > blocks.shape[-1]:
        right, left = _truncated(blocks.mT, rank)
        return left.mT, right.mT
    _, vectors = eigh(gram(blocks))
    left = vectors.flip(-1)[..., :rank].to(blocks)
    right = left.mT @ blocks
    share = torch.linalg.vector_norm(right, dim=-1, keepdim=True).sqrt()
    return left * share.mT, right / share.clamp(min=torch.finfo(share.dtype).tiny)


def _by_tensorly(blocks: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The same, block by block."""
    grid = blocks.shape[:2]
    truncated = [bridge.svd(block, rank) for block in blocks.flatten(0, 1)]
    left = torch.stack([one[0] * one[1].sqrt() for one in truncated]).reshape(*grid, -1, rank)
    right = torch.stack([(one[2] * one[1].sqrt()).mT for one in truncated]).reshape(*grid, rank, -1)
    return left, right
