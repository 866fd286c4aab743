"""CP (canonical polyadic) decomposition: a sum of rank-one tensors."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tdcompress.decompositions import bridge
from tdcompress.decompositions.algebra import (
    check_rank,
    check_tensor,
    khatri_rao,
    power_of_two,
    relative_error,
    unravelled,
)
from tdcompress.decompositions.als import als
from tdcompress.decompositions.options import CPOptions, Solver
from tdcompress.decompositions.solution import Solution
from tdcompress.threads import threads_for


@dataclass(frozen=True)
class CPDecomposition:
    """A tensor as `Σ_r weights[r] · factors[0][:, r] ∘ … ∘ factors[N][:, r]`.

    Attributes:
        weights: shape (rank,), non-negative.
        factors: one a mode, shape (size, rank), columns of unit length.
        solution: what the solver did.
    """

    weights: Tensor
    factors: tuple[Tensor, ...]
    solution: Solution

    @property
    def rank(self) -> int:
        """The number of rank-one terms."""
        return self.weights.shape[0]

    def balanced_factors(self) -> tuple[Tensor, ...]:
        """The factors with the weights spread evenly over them, so that they alone give the tensor."""
        share = self.weights ** (1 / len(self.factors))
        return tuple(factor * share for factor in self.factors)

    @property
    def sensitivity(self) -> float:
        """What the squared error grows by per unit of noise on the balanced factors, in units of its own square.

        `Σ_n I_n Σ_r Π_{m≠n} ‖a_m,r‖²` over ‖approximation‖² (Tichavský, Phan & Cichocki 2019): terms that nearly
        cancel are long, and raise it.
        """
        squares = torch.stack([factor.double().square().sum(0) for factor in self.balanced_factors()])
        sizes = torch.tensor([factor.shape[0] for factor in self.factors], dtype=squares.dtype, device=squares.device)
        others = squares.prod(0) / squares.clamp(min=torch.finfo(squares.dtype).tiny)
        total = self.to_dense().double().square().sum()
        return float((sizes @ others).sum() / total) if total > 0 else 0.0

    def to_dense(self) -> Tensor:
        """The tensor that the factors stand for."""
        return _multiply([factor.mT for factor in self.balanced_factors()])


def cp_limit(shape: Sequence[int]) -> int:
    """The largest useful rank of a tensor of `shape`: the product of all modes but the largest.

    At this rank an exact form can be written down without a search.

    >>> cp_limit((64, 32, 3, 3))
    288
    """
    return math.prod(shape) // max(shape)


def cp(
    tensor: Tensor,
    rank: int,
    *,
    solver: Solver = None,
    generator: torch.Generator | None = None,
) -> CPDecomposition:
    """Decompose by alternating least squares with extrapolation and restart.

    Finds a local optimum; the error falls with every accepted sweep. Closed forms where there are any: the
    SVD for a matrix, and the exact form at the full rank. Deterministic, for random starts given the generator's
    state.

    Sources: Carroll & Chang 1970, Harshman 1970 (ALS); Navasca, De Lathauwer & Kindermann 2008 (the proximal
    term); Phan, Tichavský & Cichocki 2013 (partial products); Mitchell, Ye & De Sterck 2020 (extrapolation and
    restart).

    Args:
        tensor: shape (I_0, …, I_N), order ≥ 2. float16 and bfloat16 are solved in float32.
        rank: the number of rank-one terms, up to `cp_limit(tensor.shape)`.
        solver: None for the defaults, `CPOptions`, or `"tensorly"` for tensorly's ALS from a
            uniform start, as in the paper.
        generator: draws random starts; a fresh one with seed 0 by default.

    Returns:
        Weights and factors in the tensor's dtype, with the solver's report.

    Raises:
        CompressionError: the tensor is not finite or not floating point, or the rank not feasible.

    >>> result = cp(torch.ones(4, 3, 2), 2)
    >>> [tuple(factor.shape) for factor in result.factors], result.solution.relative_error < 1e-3
    ([(4, 2), (3, 2), (2, 2)], True)
    """
    check_tensor(tensor)
    tensor = tensor.detach()
    check_rank([rank], [cp_limit(tensor.shape)], "CP")
    options = CPOptions.of(solver)
    generator = torch.Generator("cpu").manual_seed(0) if generator is None else generator
    began = time.perf_counter()
    work = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    # A power of two takes a kernel of 1e-30 into range without changing a bit of its shape.
    scale = power_of_two(work)
    if options.backend == "tensorly":
        seed = int(torch.randint(2**31 - 1, (1,), generator=generator, device="cpu"))
        rows, sweeps, converged = bridge.cp(work / scale, rank, seed)
    else:
        with threads_for(tensor.numel()):
            rows, sweeps, converged = _solve(work / scale, rank, options, generator, tensor.dtype)
    weights, factors = _normalized(rows)
    weights, factors = (weights * scale).to(tensor.dtype), tuple(factor.to(tensor.dtype) for factor in factors)
    decomposition = CPDecomposition(weights, factors, Solution(0.0))
    error, seconds = relative_error(tensor, decomposition.to_dense()), time.perf_counter() - began
    return replace(decomposition, solution=Solution(error, sweeps, converged, seconds, decomposition.sensitivity))


def _solve(
    tensor: Tensor, rank: int, options: CPOptions, generator: torch.Generator, dtype: torch.dtype
) -> tuple[list[Tensor], int, bool]:
    """Pick the closed form where there is one, and hide modes of size 1 from the sweeps."""
    long = [mode for mode, size in enumerate(tensor.shape) if size > 1]
    inner, sweeps, converged = tensor.squeeze(), 0, True
    if rank == cp_limit(tensor.shape) or not tensor.any():
        inner_factors = _exact(inner, rank)
    elif len(long) == 2:
        inner_factors = _svd(inner, rank)
    else:
        inner_factors, sweeps, converged = als(inner, rank, options, generator, dtype)
    rows = [tensor.new_ones(rank, 1) for _ in tensor.shape]
    for mode, factor in zip(long, inner_factors, strict=True):
        rows[mode] = factor
    if not long:
        rows[0] = rows[0] * tensor.reshape(1, 1)
    return rows, sweeps, converged


def _exact(tensor: Tensor, rank: int) -> list[Tensor]:
    """One term for every fibre along the largest mode: unit vectors elsewhere."""
    if tensor.ndim == 0:
        return []
    largest = max(range(tensor.ndim), key=lambda mode: tensor.shape[mode])
    others = [size for mode, size in enumerate(tensor.shape) if mode != largest]
    fibres = tensor.movedim(largest, -1).reshape(-1, tensor.shape[largest])[:rank]
    places = unravelled(torch.arange(len(fibres), device=tensor.device), others)
    rows = [torch.nn.functional.one_hot(i, n).to(tensor.dtype) for i, n in zip(places, others, strict=True)]
    rows.insert(largest, fibres)
    return rows


def _svd(matrix: Tensor, rank: int) -> list[Tensor]:
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    root = values[:rank].sqrt()
    return [(left[:, :rank] * root).mT.to(matrix.dtype), (right[:rank].mT * root).mT.to(matrix.dtype)]


def _normalized(rows: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    lengths = torch.stack([torch.linalg.vector_norm(factor, dim=1) for factor in rows])
    unit = [
        factor / length.clamp(min=torch.finfo(factor.dtype).tiny)[:, None]
        for factor, length in zip(rows, lengths, strict=True)
    ]
    return lengths.prod(0), tuple(factor.mT for factor in unit)


def _multiply(rows: Sequence[Tensor]) -> Tensor:
    """The dense tensor: the largest mode against the Khatri-Rao product of the others, one GEMM."""
    largest = max(range(len(rows)), key=lambda mode: rows[mode].shape[1])
    others = [factor for mode, factor in enumerate(rows) if mode != largest]
    dense = (rows[largest].mT @ khatri_rao(others)).reshape(-1, *(factor.shape[1] for factor in others))
    return dense.movedim(0, largest)
