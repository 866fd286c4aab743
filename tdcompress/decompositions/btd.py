"""Block-term decomposition: a sum of small Tucker decompositions of two modes, the others left whole."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tdcompress.decompositions.algebra import (
    check_rank,
    check_tensor,
    power_of_two,
    relative_error,
    solve_nearby,
)
from tdcompress.decompositions.extrapolation import Run
from tdcompress.decompositions.options import (
    Solver,
    SweepOptions,
    TuckerOptions,
    check_count,
    check_penalized,
    sweeps_within,
)
from tdcompress.decompositions.orthogonal import OrthogonalTerms
from tdcompress.decompositions.solution import Solution
from tdcompress.decompositions.tucker import tucker, tucker_limits
from tdcompress.errors import CompressionError
from tdcompress.threads import threads_for

_DAMPING = 1e-6  # of the mean squared length, where the vectors of a block are made orthonormal


@dataclass(frozen=True)
class BTDOptions(SweepOptions):
    """How block terms are solved for.

    Attributes:
        max_iter: sweeps at the most.
        tol: stop when ten sweeps lower the relative error by no more than ten times this share of it.
        penalty: weight of the blocks' squared lengths in what is minimized, ‖tensor − Σ blocks‖² + penalty ·
            Σ ‖block‖².
        max_work: multiplications at the most in all sweeps, of which at least ten are made; None for no limit.
        sizes: for a ratio, the sizes of square blocks to solve for; the one that loses least is taken.
    """

    max_iter: int = 300
    tol: float = 4e-5
    penalty: float = 1e-4
    max_work: float | None = 1e12
    sizes: tuple[int, ...] = (1, 2, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_penalized(self.penalty, self.max_work)
        if not self.sizes:
            raise CompressionError("sizes must name one size of blocks or more, got none.")
        for size in self.sizes:
            check_count("sizes", size, least=1)

    def sweeps_of(self, shape: Sequence[int], rank: Sequence[int]) -> int:
        """Sweeps at the most: two products with all of the tensor each, and three systems to solve."""
        blocks, first, second = rank
        rows = (blocks * first, blocks * second, blocks * first * second)
        sizes = (*shape[:2], math.prod(shape[2:]))
        solving = sum(n**3 / 3 + n**2 * size for n, size in zip(rows, sizes, strict=True))
        return sweeps_within(self.max_iter, self.max_work, math.prod(shape) * (rows[0] + rows[1]) + solving)


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
    return math.prod(joined) // max(joined), first, second


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
        return _balanced(*factors), one.solution.sweeps, one.solution.converged
    factors = _start(tensor, rank)
    terms = btd_limits(tensor.shape)[0]
    if blocks * min(first, second) >= terms or tensor.shape[2] == 1 or not tensor.any():
        return factors, 0, True
    run = Run(BlockSweep(tensor, max(options.penalty, torch.finfo(dtype).eps ** 2)), factors)
    converged = run.advance(options.sweeps_of(tensor.shape, rank), options.tol)
    return [factor.to(tensor) for factor in run.current], run.sweeps, converged


def _start(tensor: Tensor, rank: tuple[int, ...]) -> list[Tensor]:
    """The largest of mutually orthogonal rank-one terms on the diagonals of the blocks.

    A block that is wider one way than the other has vectors of further terms there, which its core does not use yet.
    """
    blocks, first, second = rank
    order = sorted(range(3), key=lambda mode: -tensor.shape[mode])
    terms = OrthogonalTerms(tensor.permute(order))
    wanted, there = blocks * max(first, second), len(terms.lost) - 1
    rows = terms.rows(min(wanted, there))
    places = torch.arange(wanted, device=tensor.device).view(-1, blocks).mT  # (blocks, terms of one)
    left, right, profiles = (rows[order.index(mode)][places % there] for mode in range(3))
    profiles = torch.where((places < there)[..., None], profiles, 0.0)  # every term once
    cores = tensor.new_zeros(*rank, tensor.shape[2])
    for place in range(min(first, second)):
        cores[:, place, place] = profiles[:, place]
    return [left[:, :first], right[:, :second], cores]


class BlockSweep:
    """One update of every factor by least squares.

    What is minimized is ‖tensor − approximation‖² + penalty · Σ ‖block‖². Factors are (blocks, r, size).

    Args:
        tensor: shape (I_0, I_1, positions).
        penalty: of the blocks' squared lengths.
    """

    def __init__(self, tensor: Tensor, penalty: float = 0.0) -> None:
        self.tensor, self.penalty = tensor, penalty
        self.by_first, self.by_second = tensor.flatten(1), tensor.transpose(0, 1).flatten(1)
        self.square = tensor.double().square().sum()

    def in_double(self) -> BlockSweep:
        """The same sweep in float64."""
        return BlockSweep(self.tensor.double(), self.penalty)

    def __call__(self, factors: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
        """The swept factors, balanced, their relative error, and Σ ‖block‖² over ‖tensor‖²."""
        left, right, cores = factors
        partial = _contracted(self.by_second, right, self.tensor.shape[0])
        left = self._solved(torch.bmm(cores.flatten(2), partial.mT), _normal(cores, right), left)
        left, cores = _orthonormal(left, cores)
        turned = cores.transpose(1, 2)
        partial = _contracted(self.by_first, left, self.tensor.shape[1])
        right = self._solved(torch.bmm(turned.flatten(2), partial.mT), _normal(turned, left), right)
        right, turned = _orthonormal(right, turned)
        shape = turned.shape
        product = torch.bmm(right, partial).view(shape).flatten(1, 2)  # (blocks, r_1 · r_0, positions)
        normal = _pairs(right, left)
        cores = self._solved(product, normal, turned.flatten(1, 2))
        length = self._weighed(cores, _blocks_of(normal, len(cores)))
        error = self._error(product, cores, normal)
        return _balanced(left, right, cores.view(shape).transpose(1, 2)), error, length

    def _solved(self, product: Tensor, normal: Tensor, previous: Tensor) -> Tensor:
        """Rows near the previous ones, all (blocks, rows of one, columns), for the normal equations of all rows."""
        penalized = normal.clone()
        own = _blocks_of(penalized, len(product))
        own += self.penalty * own
        rows = solve_nearby(penalized, product.flatten(0, 1), previous.flatten(0, 1))
        return rows.view(product.shape)

    def _weighed(self, cores: Tensor, inner: Tensor) -> Tensor:
        """Σ ‖block‖² over ‖tensor‖², for the inner products of every block's own rows."""
        return (cores.double() * torch.bmm(inner, cores).double()).sum() / self.square

    def _error(self, product: Tensor, cores: Tensor, normal: Tensor) -> Tensor:
        """‖tensor − approximation‖ / ‖tensor‖ from what the last update left behind."""
        rows = cores.flatten(0, 1)
        model = (rows.double() * (normal @ rows).double()).sum()
        inner = (product.double() * cores.double()).sum()
        return ((self.square - 2 * inner + model).clamp(min=0) / self.square).sqrt()


def _contracted(matrix: Tensor, rows: Tensor, size: int) -> Tensor:
    """A matrix (columns, size · positions) against rows (blocks, r, columns): (blocks, size, r · positions)."""
    blocks, count, _ = rows.shape
    return (rows.flatten(0, 1) @ matrix).view(blocks, count, size, -1).transpose(1, 2).flatten(2)


def _normal(cores: Tensor, rows: Tensor) -> Tensor:
    """The inner products of `cores[b] ×_2 rows[b]`, (blocks, p, q, positions) and (blocks, q, size): (bp, bp)."""
    blocks, first, second, positions = cores.shape
    if first == second == 1:
        return (cores.flatten(1) @ cores.flatten(1).mT) * (rows.flatten(1) @ rows.flatten(1).mT)
    products = torch.einsum("bqi,csi->cbqs", rows, rows).flatten(1, 2)  # (blocks, blocks · q, q)
    spread = torch.bmm(products, cores.transpose(1, 2).flatten(2))  # (blocks, blocks · q, p · positions)
    spread = spread.view(blocks, blocks, second, first, positions).permute(1, 2, 4, 0, 3)
    inner = torch.bmm(cores.flatten(2), spread.reshape(blocks, second * positions, blocks * first))
    return inner.flatten(0, 1)


def _pairs(one: Tensor, other: Tensor) -> Tensor:
    """The inner products of the Kronecker products of two factors' rows, block by block."""
    blocks, count, _ = one.shape
    first, second = (rows.flatten(0, 1) @ rows.flatten(0, 1).mT for rows in (one, other))
    product = first.view(blocks, count, 1, blocks, count, 1) * second.view(blocks, 1, -1, blocks, 1, other.shape[1])
    return product.flatten(3).flatten(0, 2)


def _blocks_of(normal: Tensor, blocks: int) -> Tensor:
    """The blocks on the diagonal: (blocks, rows of one, rows of one)."""
    size = len(normal) // blocks
    return normal.view(blocks, size, blocks, size).diagonal(dim1=0, dim2=2).movedim(-1, 0)


def _orthonormal(rows: Tensor, cores: Tensor) -> tuple[Tensor, Tensor]:
    """The same blocks with the rows of each orthonormal, and all length in the cores."""
    gram = rows @ rows.mT
    lengths = gram.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    damping = (_DAMPING * lengths).clamp(min=torch.finfo(rows.dtype).tiny).expand(-1, rows.shape[1])
    root, _ = torch.linalg.cholesky_ex(gram + torch.diag_embed(damping))
    return torch.linalg.solve_triangular(root, rows, upper=False), (root.mT @ cores.flatten(2)).view(cores.shape)


def _balanced(left: Tensor, right: Tensor, cores: Tensor) -> list[Tensor]:
    """The same blocks with as much length in either factor as in the core; a vanished block stays zero."""
    factors = (left, right, cores)
    lengths = torch.stack([torch.linalg.vector_norm(factor.flatten(1), dim=1) for factor in factors])
    goal = lengths.log().mean(0).exp()
    scale = torch.where(lengths > 0, goal / lengths, 0.0)
    return [factor * share.view(-1, *[1] * (factor.ndim - 1)) for factor, share in zip(factors, scale, strict=True)]
