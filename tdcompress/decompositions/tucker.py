"""Tucker decomposition: a core and one orthonormal factor a mode, some modes left whole."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tdcompress.decompositions import bridge
from tdcompress.decompositions.algebra import (
    check_rank,
    check_tensor,
    leading_subspace,
    mode_dot,
    relative_error,
    squared_norm,
    unfold,
    working,
)
from tdcompress.decompositions.options import Solver, TuckerOptions
from tdcompress.decompositions.solution import Solution
from tdcompress.errors import CompressionError
from tdcompress.threads import threads_for

_SMALL = 128  # up to this size of a mode, sweeps on the whole tensor cost next to nothing


@dataclass(frozen=True)
class TuckerDecomposition:
    """A tensor as `core ×_m factors[m]` over the decomposed modes.

    Attributes:
        core: the rank along every decomposed mode, the whole size along the others.
        factors: mode -> (size, rank), orthonormal columns.
        solution: what the solver did.
    """

    core: Tensor
    factors: Mapping[int, Tensor]
    solution: Solution

    @property
    def rank(self) -> tuple[int, ...]:
        """The rank of every decomposed mode, in the order in which the modes were given."""
        return tuple(self.core.shape[mode] for mode in self.factors)

    def to_dense(self) -> Tensor:
        """The tensor that core and factors stand for."""
        return _multiply(self.core, self.factors)


def tucker_limits(shape: Sequence[int], modes: Sequence[int]) -> tuple[int, ...]:
    """The largest feasible rank along each of `modes`, at which the decomposition is exact.

    >>> tucker_limits((64, 3, 3, 3), (0, 1))
    (27, 3)
    """
    size = math.prod(shape)
    return tuple(min(shape[mode], size // shape[mode]) for mode in modes)


def tucker(
    tensor: Tensor,
    rank: Sequence[int],
    *,
    modes: Sequence[int] | None = None,
    solver: Solver = None,
) -> TuckerDecomposition:
    """Decompose by HOSVD, refined by higher-order orthogonal iteration.

    The HOSVD alone is within √(number of modes) of the best error (De Lathauwer, De Moor & Vandewalle
    2000a); each sweep of HOOI (2000b) lowers it to a local optimum. Deterministic.

    Args:
        tensor: shape (I_0, …, I_N), order ≥ 2.
        rank: one entry for each of `modes`, in their order.
        modes: the modes to decompose, all by default; the others are left whole.
        solver: None for the defaults, `TuckerOptions`, or `"tensorly"` for tensorly's.

    Returns:
        Core and factors in the tensor's dtype, with the solver's report.

    Raises:
        CompressionError: the tensor is not finite or not floating point, or rank or modes not feasible.

    >>> result = tucker(torch.ones(4, 3, 2), (2, 1), modes=(0, 1))
    >>> result.core.shape, result.factors[0].shape
    (torch.Size([2, 1, 2]), torch.Size([4, 2]))
    """
    check_tensor(tensor)
    tensor = tensor.detach()
    modes = tuple(range(tensor.ndim)) if modes is None else tuple(modes)
    if len(set(modes)) != len(modes) or not set(modes) <= set(range(tensor.ndim)):
        raise CompressionError(f"modes must be different ones of 0 .. {tensor.ndim - 1}, got {modes}.")
    check_rank(rank, tucker_limits(tensor.shape, modes), "Tucker")
    options = TuckerOptions.of(solver)
    began = time.perf_counter()
    if options.backend == "tensorly":
        core, factors, sweeps, converged = bridge.tucker(tensor, rank, modes)
    else:
        with threads_for(tensor.numel()):
            core, factors, sweeps, converged = _solve(working(tensor), dict(zip(modes, rank, strict=True)), options)
    core = core.to(tensor.dtype)
    factors = {mode: factor.to(tensor.dtype) for mode, factor in factors.items()}
    error, seconds = relative_error(tensor, _multiply(core, factors)), time.perf_counter() - began
    return TuckerDecomposition(core, factors, Solution(error, sweeps, converged, seconds))


def _multiply(core: Tensor, factors: Mapping[int, Tensor], *, skip: int = -1, transpose: bool = False) -> Tensor:
    for mode, factor in factors.items():
        if mode != skip:
            core = mode_dot(core, factor.mT if transpose else factor, mode)
    return core


def _solve(
    tensor: Tensor, ranks: dict[int, int], options: TuckerOptions
) -> tuple[Tensor, dict[int, Tensor], int, bool]:
    """HOSVD, HOOI inside the leading part of it, and one sweep of HOOI on the whole tensor.

    A factor of rank r lies almost entirely in the leading 2r directions, and there a sweep costs a fraction;
    the last sweep lets in what was left out.
    """
    sizes = {mode: _leading(rank, tensor.shape[mode]) for mode, rank in ranks.items()}
    bases = {mode: leading_subspace(unfold(tensor, mode), size).to(tensor) for mode, size in sizes.items()}
    factors = {mode: bases[mode][:, :rank] for mode, rank in ranks.items()}
    if options.max_iter == 0 or all(rank == tensor.shape[mode] for mode, rank in ranks.items()):
        return _multiply(tensor, factors, transpose=True), factors, 0, True
    inner, sweeps, converged = _hooi(_multiply(tensor, bases, transpose=True), ranks, options)
    factors = {mode: bases[mode] @ factor for mode, factor in inner.items()}
    for mode, factor in factors.items():
        matrix = unfold(_multiply(tensor, factors, skip=mode, transpose=True), mode)
        # A step of orthogonal iteration: it keeps no less than before, and costs a fraction of the eigenvectors.
        factors[mode] = torch.linalg.qr(matrix @ (matrix.mT @ factor)).Q
    return _multiply(tensor, factors, transpose=True), factors, sweeps + 1, converged


def kept_by_hooi(core: Tensor, rank: Sequence[int], options: TuckerOptions) -> float:
    """The squared norm that HOOI keeps at a rank, found without solving for the kernel itself.

    Args:
        core: a kernel in the singular bases of its first modes, as many as `rank` has entries, largest first.
        rank: one entry for each of those modes.
        options: the sweeps to make.
    """
    ranks = dict(enumerate(rank))
    block = core[tuple(slice(_leading(size, core.shape[mode])) for mode, size in ranks.items())]
    factors, _, _ = _hooi(block, ranks, options)
    return squared_norm(_multiply(block, factors, transpose=True))


def _leading(rank: int, size: int) -> int:
    return min(max(2 * rank, _SMALL), size)


def _hooi(tensor: Tensor, ranks: dict[int, int], options: TuckerOptions) -> tuple[dict[int, Tensor], int, bool]:
    """From the leading unit vectors on: the factors, how many sweeps there were, and whether they converged."""
    sizes = {mode: tensor.shape[mode] for mode in ranks}
    factors = {mode: torch.eye(sizes[mode], rank, device=tensor.device).to(tensor) for mode, rank in ranks.items()}
    total, error = squared_norm(tensor), math.inf
    for sweep in range(1, options.max_iter + 1):
        for mode, rank in ranks.items():
            projected = _multiply(tensor, factors, skip=mode, transpose=True)
            factors[mode] = leading_subspace(unfold(projected, mode), rank).to(tensor)
        core = mode_dot(projected, factors[mode].mT, mode)
        # The error of orthonormal factors follows from what the core keeps.
        previous, error = error, math.sqrt(max(0.0, total - squared_norm(core)))
        if sweep > 1 and previous - error <= options.tol * previous:  # not <, or an exact one would never stop
            return factors, sweep, True
    return factors, options.max_iter, False
