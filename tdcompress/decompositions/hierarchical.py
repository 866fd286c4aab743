"""Hierarchical Tucker over the tree ((first, second), (others)): channels in one branch, space in the other."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tdcompress.decompositions.algebra import check_rank, check_tensor, relative_error
from tdcompress.decompositions.options import Solver, SweepOptions, TuckerOptions, check_count
from tdcompress.decompositions.solution import Solution
from tdcompress.decompositions.tucker import tucker, tucker_limits


@dataclass(frozen=True)
class HTOptions(SweepOptions):
    """How hierarchical Tucker is solved.

    Attributes:
        max_iter: sweeps at the most that refine the truncated hierarchical SVD; 0 for that alone.
        tol: stop when a sweep lowers the relative error by no more than this share of it.
        candidates: for a ratio, how many of the most promising ranks are refined and compared.
    """

    candidates: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("candidates", self.candidates, least=1)


@dataclass(frozen=True)
class HTDecomposition:
    """A tensor as `Σ_k (left · transfer[:, :, k] · rightᵀ) ∘ filters[k]`.

    Attributes:
        left: the leaf of the first mode, shape (I_0, r_0), orthonormal columns.
        right: the leaf of the second mode, shape (I_1, r_1), orthonormal columns.
        transfer: of the branch of both, shape (r_0, r_1, r_2).
        filters: the branch of the other modes, whole, shape (r_2, *others), orthonormal.
        solution: what the solver did.
    """

    left: Tensor
    right: Tensor
    transfer: Tensor
    filters: Tensor
    solution: Solution

    @property
    def rank(self) -> tuple[int, int, int]:
        """The ranks of the first mode, of the second, and between the two branches."""
        first, second, between = self.transfer.shape
        return first, second, between

    def to_dense(self) -> Tensor:
        """The tensor that the tree stands for."""
        channels = torch.einsum("op,pqk,iq->oik", self.left, self.transfer, self.right)
        return torch.tensordot(channels, self.filters, dims=1)


def hierarchical_tucker_limits(shape: Sequence[int]) -> tuple[int, int, int]:
    """The largest feasible ranks of a tensor of `shape`, at which the decomposition is exact.

    >>> hierarchical_tucker_limits((64, 32, 3, 3))
    (64, 32, 9)
    """
    first, second, between = tucker_limits((*shape[:2], math.prod(shape[2:])), (0, 1, 2))
    return first, second, between


def hierarchical_tucker(tensor: Tensor, rank: Sequence[int], *, solver: Solver = None) -> HTDecomposition:
    """Decompose by the truncated hierarchical SVD, refined by alternating least squares.

    Three edges of the tree are cut: above the first mode, above the second, and between their branch and that of the
    others. The hierarchical SVD (Grasedyck 2010) projects onto the leading singular vectors of these three unfoldings.
    Its squared error is at most the sum of their squared singular values that are cut, so it is within √3 of the best
    error, where a tree that cuts all its edges has √(2d − 3). As the others' modes are left whole, the tree is a
    Tucker decomposition of three modes, and the sweeps are those of HOOI (De Lathauwer, De Moor & Vandewalle 2000b):
    every factor is the best for the others, so the error does not rise. A local optimum. Deterministic.

    Args:
        tensor: shape (I_0, I_1, *others), order ≥ 2.
        rank: (r_0, r_1, r_2), the last between the branches.
        solver: None for the defaults of `HTOptions`, or options.

    Returns:
        Leaves, transfer tensor and filters in the tensor's dtype, with the solver's report.

    Raises:
        CompressionError: the tensor is not finite or not floating point, or the rank not feasible.

    >>> result = hierarchical_tucker(torch.ones(6, 4, 3, 3), (3, 2, 5))
    >>> result.left.shape, result.right.shape, result.transfer.shape, result.filters.shape
    (torch.Size([6, 3]), torch.Size([4, 2]), torch.Size([3, 2, 5]), torch.Size([5, 3, 3]))
    """
    check_tensor(tensor)
    tensor = tensor.detach()
    check_rank(rank, hierarchical_tucker_limits(tensor.shape), "hierarchical Tucker")
    options = HTOptions.of(solver)
    began = time.perf_counter()
    joined = tensor.reshape(*tensor.shape[:2], -1)
    mixed = tucker(joined, rank, modes=(0, 1, 2), solver=TuckerOptions(options.max_iter, options.tol))
    filters = mixed.factors[2].mT.reshape(-1, *tensor.shape[2:])
    decomposition = HTDecomposition(mixed.factors[0], mixed.factors[1], mixed.core, filters, mixed.solution)
    error, seconds = relative_error(tensor, decomposition.to_dense()), time.perf_counter() - began
    return replace(decomposition, solution=replace(mixed.solution, relative_error=error, seconds=seconds))
