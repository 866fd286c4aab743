"""Block-term decomposition: a sum of small Tucker decompositions of two modes, the others left whole."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tdcompress.decompositions.algebra import check_rank, check_tensor, power_of_two, relative_error
from tdcompress.decompositions.block_sweeps import (
    BlockSweep,
    balanced_blocks,
    orthogonal_blocks,
    work_of_cores,
)
from tdcompress.decompositions.cp import cp_limit
from tdcompress.decompositions.extrapolation import Run
from tdcompress.decompositions.options import Solver, SweepOptions, TuckerOptions, check_count
from tdcompress.decompositions.solution import Solution
from tdcompress.decompositions.sweeping import check_penalized, sweeps_within
from tdcompress.decompositions.tucker import tucker, tucker_limits
from tdcompress.errors import CompressionError
from tdcompress.threads import threads_for


@dataclass(frozen=True)
class BTDOptions(SweepOptions):
    """How block terms are solved for.

    Attributes:
        max_iter: sweeps at the most.
        tol: stop when ten sweeps lower the relative error by no more than ten times this share of it.
        penalty: weight of the blocks' squared lengths in what is minimized, ‖tensor − Σ blocks‖² + penalty ·
            Σ ‖block‖².
        max_work: multiplications at the most in all sweeps, of which at least ten are made; None for no limit.
        sizes: for a ratio, the sizes of square blocks to try; the one that loses least after some sweeps is solved
            for. Sizes from 2 to 7 may lose a percent less than 1 does, but CPUs run groups of so few channels slowly.
        size_tol: take the largest size that loses no more than this share more than the best one. Larger blocks have
            fewer channels between the stages, so memory and time may be saved where 8 or 16 is chosen.
    """

    max_iter: int = 300
    tol: float = 4e-5
    penalty: float = 1e-4
    max_work: float | None = 1e12
    sizes: tuple[int, ...] = (1, 8, 16)
    size_tol: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_penalized(self.penalty, self.max_work)
        if not self.sizes:
            raise CompressionError("sizes must name one size of blocks or more, got none.")
        for size in self.sizes:
            check_count("sizes", size, least=1)
        if not 0 <= self.size_tol < math.inf:
            raise CompressionError(f"size_tol must be a number from 0, got {self.size_tol!r}.")

    def sweeps_of(self, shape: Sequence[int], rank: Sequence[int]) -> int:
        """Sweeps at the most: two products with all of the tensor each, and three systems to solve."""
        blocks, first, second = rank
        rows, positions = (blocks * first, blocks * second), math.prod(shape[2:])
        solving = sum(n**3 / 3 + n**2 * size for n, size in zip(rows, shape[:2], strict=True))
        work = math.prod(shape) * sum(rows) + solving + work_of_cores(rank, positions)
        return sweeps_within(self.max_iter, self.max_work, work)


@dataclass(frozen=True)
class BTDecomposition:
    """A tensor as `Σ_b cores[b] ×_0 left[b] ×_1 right[b]`.

    Attributes:
        cores: shape (blocks, r_0, r_1, *others), the modes from the third on being whole.
        left: of the first mode, shape (blocks, I_0, r_0).
        right: of the second mode, shape (blocks, I_1, r_1).
        solution: what the solver did.
    """

    cores: Tensor
    left: Tensor
    right: Tensor
    solution: Solution

    @property
    def rank(self) -> tuple[int, int, int]:
        """The number of blocks, and the size of each along the first and the second mode."""
        blocks, first, second = self.cores.shape[:3]
        return blocks, first, second

    def to_dense(self) -> Tensor:
        """The tensor that the blocks stand for."""
        others, (rows, columns) = self.cores.shape[3:], (self.left.shape[1], self.right.shape[1])
        positions = self.cores.reshape(*self.rank, -1).movedim(-1, 1)  # (blocks, positions, r_0, r_1)
        partial = positions @ self.right.mT[:, None]  # (blocks, positions, r_0, I_1)
        dense = self.left.movedim(0, 1).flatten(1) @ partial.transpose(1, 2).flatten(2).flatten(0, 1)
        return dense.view(rows, -1, columns).mT.reshape(rows, columns, *others)


def btd_limits(shape: Sequence[int]) -> tuple[int, int, int]:
    """The most blocks that are of use, and their largest sizes; with either the decomposition is exact.

    So many blocks of size 1 write every tensor of `shape` down, and so does one block of the largest sizes, which is a
    Tucker decomposition.

    >>> btd_limits((64, 32, 3, 3))
    (288, 64, 32)
    """
    joined = (*shape[:2], math.prod(shape[2:]))
    first, second = tucker_limits(joined, (0, 1))
    return cp_limit(joined), first, second


def btd(tensor: Tensor, rank: Sequence[int], *, solver: Solver = None) -> BTDecomposition:
    """Decompose by alternating least squares over the blocks, with extrapolation and restart.

    Finds a local optimum; error and penalty together fall with every accepted sweep. Closed forms where there are any:
    the SVD for a matrix, and as many rank-one terms as write the tensor down. One block is a Tucker decomposition and
    is solved as one; blocks of size 1 are CP with the modes from the third on taken together. Deterministic.

    Sources: De Lathauwer 2008 (the decomposition); De Lathauwer & Nion 2008 (alternating least squares); Mitchell, Ye
    & De Sterck 2020 (extrapolation and restart).

    Args:
        tensor: shape (I_0, I_1, *others), order ≥ 2. float16 and bfloat16 are solved in float32.
        rank: (blocks, r_0, r_1), up to `btd_limits(tensor.shape)`.
        solver: None for the defaults of `BTDOptions`, or options.

    Returns:
        Cores and factors in the tensor's dtype, with the solver's report.

    Raises:
        CompressionError: the tensor is not finite or not floating point, or the rank not feasible.

    >>> result = btd(torch.ones(6, 4, 3), (2, 2, 1))
    >>> result.cores.shape, result.left.shape, result.right.shape
    (torch.Size([2, 2, 1, 3]), torch.Size([2, 6, 2]), torch.Size([2, 4, 1]))
    """
    check_tensor(tensor)
    tensor = tensor.detach()
    check_rank(rank, btd_limits(tensor.shape), "block-term")
    options = BTDOptions.of(solver)
    began = time.perf_counter()
    work = tensor.reshape(*tensor.shape[:2], -1).to(torch.promote_types(tensor.dtype, torch.float32))
    scale = power_of_two(work)
    with threads_for(tensor.numel()):
        (left, right, cores), sweeps, converged = _solve(work / scale, tuple(rank), options, tensor.dtype)
    share = scale ** (1 / 3)
    left, right, cores = ((factor * share).to(tensor.dtype) for factor in (left, right, cores))
    decomposition = BTDecomposition(cores.reshape(*rank, *tensor.shape[2:]), left.mT, right.mT, Solution(0.0))
    error, seconds = relative_error(tensor, decomposition.to_dense()), time.perf_counter() - began
    return replace(decomposition, solution=Solution(error, sweeps, converged, seconds))


def _solve(
    tensor: Tensor, rank: tuple[int, ...], options: BTDOptions, dtype: torch.dtype
) -> tuple[list[Tensor], int, bool]:
    """The factors of (I_0, I_1, positions) as rows, (blocks, r, I), and the cores; sweeps; whether they converged."""
    blocks, first, second = rank
    if blocks == 1:
        one = tucker(tensor, rank[1:], modes=(0, 1), solver=TuckerOptions(options.max_iter))
        factors = [one.factors[0].mT[None], one.factors[1].mT[None], one.core[None]]
        return balanced_blocks(*factors), one.solution.sweeps, one.solution.converged
    factors = orthogonal_blocks(tensor, rank)
    terms = btd_limits(tensor.shape)[0]
    if blocks * min(first, second) >= terms or tensor.shape[2] == 1 or not tensor.any():
        return factors, 0, True
    run = Run(BlockSweep(tensor, max(options.penalty, torch.finfo(dtype).eps ** 2)), factors)
    converged = run.advance(options.sweeps_of(tensor.shape, rank), options.tol)
    return [factor.to(tensor) for factor in run.current], run.sweeps, converged
