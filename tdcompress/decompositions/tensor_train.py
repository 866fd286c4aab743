"""Tensor train: a chain of three-way cores, one a mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tdcompress.decompositions import bridge
from tdcompress.decompositions.algebra import check_rank, check_tensor, leading_subspace, relative_error
from tdcompress.decompositions.solution import Solution
from tdcompress.errors import CompressionError


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


def tensor_train(tensor: Tensor, rank: Sequence[int], *, solver: str | None = None) -> TTDecomposition:
    """Decompose by TT-SVD (Oseledets 2011).

    The error is within √(N−1) of the best at these ranks; its square is at most the sum of the squared
    singular values that are cut from each of the N−1 unfoldings. Deterministic, no sweeps.

    Args:
        tensor: shape (I_0, …, I_N), order ≥ 2.
        rank: the inner ranks (r_1, …, r_{N-1}).
        solver: None for ours, `"tensorly"` for tensorly's.

    Returns:
        The cores in the tensor's dtype, all but the last left-orthonormal, with the solver's report.

    Raises:
        CompressionError: the tensor is not finite or not floating point, or the rank not feasible.

    >>> [tuple(core.shape) for core in tensor_train(torch.ones(4, 3, 2), (2, 1)).cores]
    [(1, 4, 2), (2, 3, 1), (1, 2, 1)]
    """
    check_tensor(tensor)
    check_rank(rank, tensor_train_limits(tensor.shape), "tensor-train")
    _check_chain(tensor.shape, rank)
    bridge.check_solver(solver)
    cores = bridge.tensor_train(tensor, rank) if solver == "tensorly" else _tt_svd(tensor, rank)
    cores = tuple(core.to(tensor.dtype) for core in cores)
    return TTDecomposition(cores, Solution(relative_error(tensor, _multiply(cores))))


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
    rest, left = tensor.double(), 1
    for size, right in zip(tensor.shape[:-1], rank, strict=True):
        matrix = rest.reshape(left * size, -1)
        vectors = leading_subspace(matrix, right)
        cores.append(vectors.reshape(left, size, right))
        rest, left = vectors.mT @ matrix, right
    return (*cores, rest.reshape(left, tensor.shape[-1], 1))


def _multiply(cores: Sequence[Tensor]) -> Tensor:
    product = cores[0]
    for core in cores[1:]:
        product = torch.tensordot(product, core, dims=1)
    return product.squeeze(0).squeeze(-1)
