"""Tensor ring: a chain of three-way cores, one a mode, whose ends share a bond."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from tdcompress.decompositions.algebra import chained, check_rank, check_tensor, power_of_two, relative_error
from tdcompress.decompositions.cp import cp_limit
from tdcompress.decompositions.extrapolation import Run, most_promising
from tdcompress.decompositions.options import Solver, SweepOptions, TTOptions, check_count
from tdcompress.decompositions.ring_sweep import RingSweep, ring_cores, ring_start
from tdcompress.decompositions.solution import Solution
from tdcompress.decompositions.sweeping import Start, check_penalized, check_starts, sweeps_within
from tdcompress.decompositions.tensor_train import tensor_train, tensor_train_limits
from tdcompress.errors import CompressionError
from tdcompress.shapes import Rank
from tdcompress.threads import threads_for


@dataclass(frozen=True)
class TROptions(SweepOptions):
    """How the tensor ring is solved.

    Attributes:
        max_iter: sweeps at the most, for any one start.
        tol: stop when ten sweeps lower the relative error by no more than ten times this share of it.
        starts: what the sweeps begin from; of several, the one that is best after a few sweeps goes on.
            `"orthogonal"` is deterministic and ends a little lower on trained kernels; `"random"` is drawn from the
            seed, and may be named repeatedly.
        penalty: weight of the slices' squared lengths in what is minimized, ‖tensor − Σ slices‖² + penalty ·
            Σ ‖slice‖². It keeps slices from growing long and cancelling each other.
        max_work: multiplications at the most in all sweeps from a start, of which at least ten are made; None for no
            limit.
        bonds: for a ratio, about how large the inner bonds are; of several sizes, the one that loses least after a few
            sweeps is taken. As many slices as fit make use of the rest. Multiples of 8 make faster layers.
        orders: for a ratio, in which orders of the spatial axes a tensor train is compared with the ring, `"all"` or
            `"given"`; the ring itself is always solved in the given one.
    """

    max_iter: int = 300
    tol: float = 4e-5
    starts: tuple[Start, ...] = ("orthogonal",)
    penalty: float = 1e-4
    max_work: float | None = 1e12
    bonds: tuple[int, ...] = (6, 8, 16)
    orders: Literal["all", "given"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_starts(self.starts)
        check_penalized(self.penalty, self.max_work)
        if not self.bonds:
            raise CompressionError("bonds must name one size of bonds or more, got none.")
        for bond in self.bonds:
            check_count("bonds", bond, least=1)
        if self.orders not in ("all", "given"):
            raise CompressionError(f"orders must be 'all' or 'given', got {self.orders!r}.")

    def sweeps_of(self, shape: Sequence[int], rank: Sequence[int]) -> int:
        """Sweeps at the most: two products with all of the tensor each, three matrices of pairs, and two systems."""
        closing, first, *_, last = rank
        rows = (closing * first, closing * last)
        solving = sum(n**3 / 3 + n**2 * size for n, size in zip(rows, (shape[0], shape[-1]), strict=True))
        work = math.prod(shape) * sum(rows) + 3 * (rows[0] * last) ** 2 + solving
        return sweeps_within(self.max_iter, self.max_work, work)


@dataclass(frozen=True)
class TRDecomposition:
    """A tensor as the traces of products of cores, one factor a mode.

    Attributes:
        cores: one a mode, shapes (r_n, I_n, r_{n+1}), with the last bond being the first, r_{N+1} = r_0.
        solution: what the solver did.
    """

    cores: tuple[Tensor, ...]
    solution: Solution

    @property
    def rank(self) -> Rank:
        """The bonds (r_0, …, r_N), each the one before its core."""
        return tuple(core.shape[0] for core in self.cores)

    def to_dense(self) -> Tensor:
        """The tensor that the cores stand for."""
        first, *others = self.cores
        return torch.tensordot(first, chained(others), dims=([2, 0], [0, -1]))


def tensor_ring_limits(shape: Sequence[int]) -> Rank:
    """The largest bonds that are of use for a tensor of `shape`; at the inner ones every ring is exact.

    The inner bonds are those of a tensor train, which is a ring with r_0 = 1. The ring's own bond is at most the number
    of rank-one terms that write the tensor down with its middle modes taken together, and what the first and the last
    core can fill. A matrix has 1: a second slice would be a part of the first.

    >>> tensor_ring_limits((64, 3, 3, 128)), tensor_ring_limits((64, 128))
    ((576, 64, 192, 128), (1, 64))
    """
    inner = tensor_train_limits(shape)
    if len(shape) == 2:
        return (1, *inner)
    terms = cp_limit((shape[0], math.prod(shape[1:-1]), shape[-1]))
    return (min(terms, shape[0] * inner[0], shape[-1] * inner[-1]), *inner)


def tensor_ring(
    tensor: Tensor, rank: Sequence[int], *, solver: Solver = None, generator: torch.Generator | None = None
) -> TRDecomposition:
    """Decompose by alternating least squares over the cores, with extrapolation and restart.

    Finds a local optimum; error and penalty together fall with every accepted sweep. It is never worse than the tensor
    train of the same inner bonds, which is the ring with r_0 = 1, and is taken where the sweeps end above it. At
    r_0 = 1, and where the inner bonds are those of an exact train, nothing else is tried.
    Deterministic, but for random starts.

    Alternating least squares on a ring may be unstable: slices grow and cancel each other while the error hardly falls
    (Phan et al. 2022, arXiv 2203.02617). The penalty, and bonds that are kept orthonormal, keep them short.

    Sources: Zhao, Zhou, Xie, Zhang & Cichocki 2016 (the decomposition, and alternating least squares); Mitchell, Ye &
    De Sterck 2020 (extrapolation and restart).

    Args:
        tensor: shape (I_0, …, I_N), order ≥ 2. The first and the last mode may be long, those between should be
            short. float16 and bfloat16 are solved in float32.
        rank: (r_0, …, r_N), up to `tensor_ring_limits(tensor.shape)`; r_n is the bond before mode n.
        solver: None for the defaults of `TROptions`, or options.
        generator: what random starts are drawn from; None for a fresh one with seed 0.

    Returns:
        The cores in the tensor's dtype, with the solver's report.

    Raises:
        CompressionError: the tensor is not finite or not floating point, or the rank not feasible.

    >>> [tuple(core.shape) for core in tensor_ring(torch.ones(4, 3, 5), (2, 3, 4)).cores]
    [(2, 4, 3), (3, 3, 4), (4, 5, 2)]
    """
    check_tensor(tensor)
    tensor = tensor.detach()
    check_rank(rank, tensor_ring_limits(tensor.shape), "tensor-ring")
    options, rank = TROptions.of(solver), tuple(rank)
    began = time.perf_counter()
    work = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    scale = power_of_two(work)
    with threads_for(tensor.numel()):
        found = _as_train(work / scale, rank, options)
        if rank[0] > 1 and rank[1:] != tensor_train_limits(tensor.shape) and work.any():
            precision = torch.finfo(tensor.dtype).eps ** 2
            options = replace(options, penalty=max(options.penalty, precision))
            ring = _swept(work / scale, rank, options, generator or torch.Generator().manual_seed(0))
            found = min(ring, found, key=lambda one: one.solution.relative_error)
    share = scale ** (1 / len(rank))
    found = replace(found, cores=tuple((core * share).to(tensor.dtype) for core in found.cores))
    error, seconds = relative_error(tensor, found.to_dense()), time.perf_counter() - began
    return replace(found, solution=replace(found.solution, relative_error=error, seconds=seconds))


def _as_train(tensor: Tensor, rank: Rank, options: TROptions) -> TRDecomposition:
    """The tensor train of the inner bonds, as far as one can fill them from its start; zeros fill up the rest."""
    bonds, before = [], 1
    for wanted, size in zip(rank[1:], tensor.shape[:-1], strict=True):
        before = min(wanted, before * size)
        bonds.append(before)
    train = tensor_train(tensor, bonds, solver=TTOptions(min(options.max_iter, TTOptions().max_iter)))
    cores = []
    for core, left, right in zip(train.cores, rank, (*rank[1:], rank[0]), strict=True):
        filled = core.new_zeros(left, core.shape[1], right)
        filled[: core.shape[0], :, : core.shape[2]] = core
        cores.append(filled)
    return TRDecomposition(tuple(cores), train.solution)


def _swept(tensor: Tensor, rank: Rank, options: TROptions, generator: torch.Generator) -> TRDecomposition:
    """The ring that the sweeps end at, from the best of the starts."""
    sweep, most = RingSweep(tensor, options.penalty), options.sweeps_of(tensor.shape, rank)
    runs = [Run(sweep, ring_start(kind, tensor, rank, generator)) for kind in options.starts]
    best = most_promising(runs, most)
    converged = best.advance(most - best.sweeps, options.tol)
    ring = TRDecomposition(ring_cores([factor.to(tensor) for factor in best.current]), Solution(0.0))
    error = relative_error(tensor, ring.to_dense())
    return replace(ring, solution=Solution(error, best.sweeps, converged))
