"""Tensor train: a chain of three-way cores, one a mode."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tdcompress.decompositions import bridge
from tdcompress.decompositions.algebra import (
    chained,
    check_rank,
    check_tensor,
    leading_subspace,
    relative_error,
    squared_norm,
    working,
)
from tdcompress.decompositions.options import Solver, TTOptions
from tdcompress.decompositions.solution import Solution
from tdcompress.errors import CompressionError
from tdcompress.threads import threads_for


@dataclass(frozen=True)
class TTDecomposition:
    """A tensor as a product of cores.

    Attributes:
        cores: one a mode, shapes (r_{n-1}, I_n, r_n) with r_0 = r_N = 1.
        solution: what the solver did.
    """

    cores: tuple[Tensor, ...]
    solution: Solution

    @property
    def rank(self) -> tuple[int, ...]:
        """The inner ranks (r_1, …, r_{N-1})."""
        return tuple(core.shape[-1] for core in self.cores[:-1])

    def to_dense(self) -> Tensor:
        """The tensor that the cores stand for."""
        return _multiply(self.cores)


def tensor_train_limits(shape: Sequence[int]) -> tuple[int, ...]:
    """The largest feasible inner ranks of a tensor of `shape`, at which every train is exact.

    >>> tensor_train_limits((64, 3, 3, 128))
    (64, 192, 128)
    """
    return tuple(min(math.prod(shape[:i]), math.prod(shape[i:])) for i in range(1, len(shape)))


def tensor_train(tensor: Tensor, rank: Sequence[int], *, solver: Solver = None) -> TTDecomposition:
    """Decompose by TT-SVD, refined by alternating least squares.

    The error of TT-SVD (Oseledets 2011) is within √(N−1) of the best at these ranks; its square is at most the
    sum of the squared singular values that are cut from each of the N−1 unfoldings. The sweeps (Holtz,
    Rohwedder & Schneider 2012) lower it to a local optimum. Deterministic.

    Args:
        tensor: shape (I_0, …, I_N), order ≥ 2.
        rank: the inner ranks (r_1, …, r_{N-1}).
        solver: None for the defaults, `TTOptions`, or `"tensorly"` for tensorly's TT-SVD.

    Returns:
        The cores in the tensor's dtype, all but the last left-orthonormal, with the solver's report.

    Raises:
        CompressionError: the tensor is not finite or not floating point, or the rank not feasible.

    >>> [tuple(core.shape) for core in tensor_train(torch.ones(4, 3, 2), (2, 1)).cores]
    [(1, 4, 2), (2, 3, 1), (1, 2, 1)]
    """
    check_tensor(tensor)
    tensor = tensor.detach()
    check_rank(rank, tensor_train_limits(tensor.shape), "tensor-train")
    _check_chain(tensor.shape, rank)
    options = TTOptions.of(solver)
    began = time.perf_counter()
    if options.backend == "tensorly":
        cores, sweeps, converged = bridge.tensor_train(tensor, rank), 0, True
    else:
        with threads_for(tensor.numel()):
            work = working(tensor)
            cores, sweeps, converged = _alternate(work, _tt_svd(work, rank), options)
    cores = tuple(core.to(tensor.dtype) for core in cores)
    error, seconds = relative_error(tensor, _multiply(cores)), time.perf_counter() - began
    return TTDecomposition(cores, Solution(error, sweeps, converged, seconds))


def _check_chain(shape: Sequence[int], rank: Sequence[int]) -> None:
    left = 1
    for size, right in zip(shape[:-1], rank, strict=True):
        if right > left * size:
            raise CompressionError(
                f"tensor-train rank {tuple(rank)} is not feasible: after {left} and a mode of size {size} the "
                f"largest feasible is {left * size}, got {right}."
            )
        left = right


def _tt_svd(tensor: Tensor, rank: Sequence[int]) -> tuple[Tensor, ...]:
    cores = []
    rest, left = tensor, 1
    for size, right in zip(tensor.shape[:-1], rank, strict=True):
        matrix = rest.reshape(left * size, -1)
        vectors = leading_subspace(matrix, right).to(matrix)
        cores.append(vectors.reshape(left, size, right))
        rest, left = vectors.mT @ matrix, right
    return (*cores, rest.reshape(left, tensor.shape[-1], 1))


def _alternate(tensor: Tensor, cores: tuple[Tensor, ...], options: TTOptions) -> tuple[tuple[Tensor, ...], int, bool]:
    """Sweeps from right to left and back, every core being the best for the orthonormal others.

    A train with a bond that the next core cannot fill from its side has no such sweeps, and stays as it is.
    """
    if any(left > size * right for left, size, right in (core.shape for core in cores)):
        return cores, 0, True
    total = squared_norm(tensor)
    error = _error(total, cores[-1])
    backward = tensor.permute(*reversed(range(tensor.ndim)))
    for sweep in range(1, options.max_iter + 1):
        # A train read from its end is a train of the transposed tensor, so one direction serves both.
        turned = _half_sweep(backward, _turned(cores))
        cores = _half_sweep(tensor, _turned(turned))
        previous, error = error, _error(total, cores[-1])
        if previous - error <= options.tol * previous:
            return cores, sweep, True
    return cores, options.max_iter, options.max_iter == 0


def _half_sweep(tensor: Tensor, cores: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """From the first core to the last, for cores whose later ones are right-orthonormal."""
    bases = [cores[-1].squeeze(-1)]  # (r_n, everything after bond n), orthonormal rows
    for core in cores[-2:0:-1]:
        bases.insert(0, torch.tensordot(core, bases[0], dims=1).flatten(1))
    swept, rest, left = [], tensor, 1
    for size, basis in zip(tensor.shape[:-1], bases, strict=True):
        matrix = rest.reshape(left * size, -1)
        orthonormal, _ = torch.linalg.qr(matrix @ basis.mT)
        swept.append(orthonormal.reshape(left, size, -1))
        rest, left = orthonormal.mT @ matrix, orthonormal.shape[1]
    return (*swept, rest.reshape(left, tensor.shape[-1], 1))


def _turned(cores: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The train read from its end."""
    return tuple(core.permute(2, 1, 0) for core in reversed(cores))


def _error(total: float, last: Tensor) -> float:
    """The error of a left-orthonormal train follows from its last core, which holds what is kept."""
    return math.sqrt(max(0.0, total - squared_norm(last)))


def _multiply(cores: Sequence[Tensor]) -> Tensor:
    return chained(cores).squeeze(0).squeeze(-1)
