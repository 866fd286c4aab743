"""Tucker decomposition: a core and one orthonormal factor a mode, some modes left whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from tdcompress.decompositions import bridge
from tdcompress.decompositions.algebra import (
    check_rank,
    check_tensor,
    leading_subspace,
    mode_dot,
    relative_error,
    unfold,
)
from tdcompress.decompositions.solution import Solution


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
        """The rank of every decomposed mode, in the order of the modes."""
        return tuple(self.core.shape[mode] for mode in sorted(self.factors))

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
    solver: str | None = None,
    max_iter: int = 100,
    tol: float = 1e-6,
) -> TuckerDecomposition:
    """Decompose by HOSVD, refined by higher-order orthogonal iteration.

    The HOSVD alone is within √(number of modes) of the best error (De Lathauwer, De Moor & Vandewalle
    2000a); each sweep of HOOI (2000b) lowers it to a local optimum. Deterministic.

    Args:
        tensor: shape (I_0, …, I_N), order ≥ 2.
        rank: one entry for each of `modes`, in their order.
        modes: the modes to decompose, all by default; the others are left whole.
        solver: None for ours, `"tensorly"` for tensorly's.
        max_iter: sweeps of HOOI at the most; 0 for the truncated HOSVD.
        tol: stop when a sweep lowers the relative error by less than this share of it.

    Returns:
        Core and factors in the tensor's dtype, with the solver's report.

    Raises:
        CompressionError: the tensor is not finite or not floating point, or the rank not feasible.

    >>> import torch
    >>> result = tucker(torch.ones(4, 3, 2), (2, 1), modes=(0, 1))
    >>> result.core.shape, result.factors[0].shape
    (torch.Size([2, 1, 2]), torch.Size([4, 2]))
    """
    check_tensor(tensor)
    modes = tuple(range(tensor.ndim)) if modes is None else tuple(modes)
    check_rank(rank, tucker_limits(tensor.shape, modes), "Tucker")
    bridge.check_solver(solver)
    if solver == "tensorly":
        core, factors, sweeps = bridge.tucker(tensor, rank, modes, max_iter, tol)
    else:
        core, factors, sweeps = _hooi(tensor.double(), dict(zip(modes, rank, strict=True)), max_iter, tol)
    core = core.to(tensor.dtype)
    factors = {mode: factor.to(tensor.dtype) for mode, factor in factors.items()}
    error = relative_error(tensor, _multiply(core, factors))
    return TuckerDecomposition(core, factors, Solution(error, sweeps, sweeps < max_iter))


def _multiply(core: Tensor, factors: Mapping[int, Tensor], *, skip: int = -1, transpose: bool = False) -> Tensor:
    for mode, factor in factors.items():
        if mode != skip:
            core = mode_dot(core, factor.mT if transpose else factor, mode)
    return core


def _hooi(tensor: Tensor, ranks: dict[int, int], max_iter: int, tol: float) -> tuple[Tensor, dict[int, Tensor], int]:
    factors = {mode: leading_subspace(unfold(tensor, mode), rank) for mode, rank in ranks.items()}
    core = _multiply(tensor, factors, transpose=True)
    if all(rank == tensor.shape[mode] for mode, rank in ranks.items()):
        return core, factors, 0
    total = tensor.square().sum()
    error = _error(total, core)
    sweep = 0
    while sweep < max_iter:
        sweep += 1
        for mode, rank in ranks.items():
            projected = _multiply(tensor, factors, skip=mode, transpose=True)
            factors[mode] = leading_subspace(unfold(projected, mode), rank)
        core = mode_dot(projected, factors[mode].mT, mode)
        previous, error = error, _error(total, core)
        # Not <, or an exact decomposition would never stop.
        if previous - error <= tol * previous:
            break
    return core, factors, sweep


def _error(total: Tensor, core: Tensor) -> float:
    """The error of orthonormal factors follows from what the core keeps."""
    return float((total - core.square().sum()).clamp(min=0).sqrt())
