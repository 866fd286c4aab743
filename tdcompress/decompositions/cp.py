"""CP (canonical polyadic) decomposition: a sum of rank-one tensors, by alternating least squares.

Two things make a kernel's ALS fast. The matricised-tensor-times-Khatri-Rao product (MTTKRP) of every
mode is taken from one of two partial products, `tensor ×` the factor of its largest or its second largest
mode: two matrix products a sweep whatever the order, and the Khatri-Rao matrix of two channel modes (for
512 × 512 × 3 × 3 a 786 432 × R matrix) is never formed. And sweeps start from a point extrapolated along
the last step, with a restart when the error rises, which saves most of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tdcompress.decompositions import bridge
from tdcompress.decompositions.algebra import check_rank, check_tensor, relative_error
from tdcompress.decompositions.solution import Solution

_MOMENTUM_LIMIT = 0.97
_QUIET_SWEEPS = 5  # extrapolated progress comes in waves: one small step is not yet convergence


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
    solver: str | None = None,
    max_iter: int = 200,
    tol: float = 1e-5,
    generator: torch.Generator | None = None,
) -> CPDecomposition:
    """Decompose by alternating least squares with extrapolation and restart.

    Finds a local optimum; the error falls with every accepted sweep. Closed forms where there are any: the
    SVD for a matrix, and the exact form at the full rank. Deterministic for a given generator state.

    Sources: Carroll & Chang 1970, Harshman 1970 (ALS); Phan, Tichavský & Cichocki 2013 (partial products);
    Mitchell, Ye & De Sterck 2020 (extrapolation and restart).

    Args:
        tensor: shape (I_0, …, I_N), order ≥ 2. float16 and bfloat16 are solved in float32.
        rank: the number of rank-one terms, up to `cp_limit(tensor.shape)`.
        solver: None for ours, `"tensorly"` for tensorly's ALS from a uniform start.
        max_iter: sweeps at the most.
        tol: stop after five sweeps in a row that each lower the relative error by less than this share.
        generator: draws the start; a fresh one with seed 0 by default.

    Returns:
        Weights and factors in the tensor's dtype, with the solver's report.

    Raises:
        CompressionError: the tensor is not finite or not floating point, or the rank not feasible.

    >>> result = cp(torch.ones(4, 3, 2), 2)
    >>> [tuple(factor.shape) for factor in result.factors], round(result.solution.relative_error, 4)
    ([(4, 2), (3, 2), (2, 2)], 0.0)
    """
    check_tensor(tensor)
    check_rank([rank], [cp_limit(tensor.shape)], "CP")
    bridge.check_solver(solver)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    work = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    # A power of two takes a kernel of 1e-30 into range without changing a bit of its shape.
    scale = _power_of_two(work)
    if solver == "tensorly":
        seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
        weights, columns, sweeps = bridge.cp(work / scale, rank, max_iter, tol, seed)
        rows = [column.mT * (weights[:, None] if mode == 0 else 1) for mode, column in enumerate(columns)]
    else:
        rows, sweeps = _solve(work / scale, rank, max_iter, tol, generator)
    weights, factors = _normalized(rows)
    weights, factors = (
        (weights * scale).to(tensor.dtype),
        tuple(factor.to(tensor.dtype) for factor in factors),
    )
    found = CPDecomposition(weights, factors, Solution(0.0))
    error = relative_error(tensor, found.to_dense())
    return CPDecomposition(weights, factors, Solution(error, sweeps, sweeps < max_iter))


# Inside the solver a factor is stored as rows, (rank, size): one contiguous vector a term.


def _solve(
    tensor: Tensor, rank: int, max_iter: int, tol: float, generator: torch.Generator
) -> tuple[list[Tensor], int]:
    """Pick the closed form where there is one, and hide modes of size 1 from the sweeps."""
    long = [mode for mode, size in enumerate(tensor.shape) if size > 1]
    inner = tensor.squeeze()
    if rank == cp_limit(tensor.shape) or not tensor.any():
        found, sweeps = _exact(inner, rank), 0
    elif len(long) == 2:
        found, sweeps = _svd(inner, rank), 0
    else:
        found, sweeps = _als(inner, rank, max_iter, tol, generator)
    rows = [tensor.new_ones(rank, 1) for _ in tensor.shape]
    for mode, factor in zip(long, found, strict=True):
        rows[mode] = factor
    if not long:
        rows[0] = rows[0] * tensor.reshape(1, 1)
    return rows, sweeps


def _exact(tensor: Tensor, rank: int) -> list[Tensor]:
    """One term for every fibre along the largest mode: unit vectors elsewhere."""
    if tensor.ndim == 0:
        return []
    largest = max(range(tensor.ndim), key=lambda mode: tensor.shape[mode])
    others = [size for mode, size in enumerate(tensor.shape) if mode != largest]
    fibres = tensor.movedim(largest, -1).reshape(-1, tensor.shape[largest])[:rank]
    places = torch.unravel_index(torch.arange(len(fibres), device=tensor.device), others) if others else ()
    rows = [torch.nn.functional.one_hot(i, n).to(tensor.dtype) for i, n in zip(places, others, strict=True)]
    rows.insert(largest, fibres)
    return rows


def _svd(matrix: Tensor, rank: int) -> list[Tensor]:
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    root = values[:rank].sqrt()
    return [(left[:, :rank] * root).mT.to(matrix.dtype), (right[:rank].mT * root).mT.to(matrix.dtype)]


def _als(tensor: Tensor, rank: int, max_iter: int, tol: float, generator: torch.Generator) -> tuple[list[Tensor], int]:
    """Extrapolated ALS; the modes are put in order of size for it, largest first."""
    order = sorted(range(tensor.ndim), key=lambda mode: -tensor.shape[mode])
    sweep = _Sweep(tensor.permute(order))
    current = sweep.start(rank, generator)
    point, error, age, quiet, count = current, math.inf, 1, 0, 0
    while count < max_iter and quiet < _QUIET_SWEEPS:
        count += 1
        found, found_error = sweep(point)
        if found_error > error and age > 1:
            point, age = current, 1  # the extrapolation overshot: forget it and sweep from where we were
            continue
        quiet = quiet + 1 if error - found_error <= tol * found_error else 0
        momentum = min((age - 1) / (age + 2), _MOMENTUM_LIMIT)
        point = [new + momentum * (new - old) for new, old in zip(found, current, strict=True)]
        current, error, age = found, min(error, found_error), age + 1
    unsorted = [current[order.index(mode)] for mode in range(tensor.ndim)]
    return unsorted, count


class _Sweep:
    """One update of every factor by least squares, for a tensor with its modes in order of size."""

    def __init__(self, tensor: Tensor) -> None:
        self.shape = tensor.shape
        first, second = tensor.shape[:2]
        self.by_first = tensor.reshape(first, -1)
        self.by_second = tensor.transpose(0, 1).reshape(second, -1)
        self.square = float(tensor.double().square().sum())

    def start(self, rank: int, generator: torch.Generator) -> list[Tensor]:
        """Normal random factors, drawn on the CPU so that every device starts alike."""
        drawn = [torch.randn(rank, size, generator=generator, dtype=torch.float64) for size in self.shape]
        return [torch.nn.functional.normalize(rows, dim=1).to(self.by_first) for rows in drawn]

    def __call__(self, factors: Sequence[Tensor]) -> tuple[list[Tensor], float]:
        """The swept factors, balanced, and their relative error."""
        first, second, *rest = factors
        grams = [rows @ rows.mT for rows in factors]
        rank = len(first)
        # Both partial products are (rank, size, *rest); the first serves one mode, the second all others.
        partial = (second @ self.by_second).view(rank, self.shape[0], *self.shape[2:])
        first = _least_squares(_contract_rest(partial, rest), grams, 0, first)
        partial = (first @ self.by_first).view(rank, self.shape[1], *self.shape[2:])
        second = _least_squares(product := _contract_rest(partial, rest), grams, 1, second)
        swept = [first, second, *rest]
        small = torch.einsum("ri,ri...->r...", second, partial)
        for mode in range(2, len(factors)):
            product = _contract_others(small, swept[2:], mode - 2)
            swept[mode] = _least_squares(product, grams, mode, swept[mode])
        error = self._error(product, swept[-1], grams)
        return _balanced(swept), error

    def _error(self, product: Tensor, last: Tensor, grams: Sequence[Tensor]) -> float:
        """‖tensor − approximation‖ / ‖tensor‖ from what the last update left behind."""
        model = _hadamard(grams, -1).double().sum()
        inner = (product.double() * last.double()).sum()
        return math.sqrt(max(float(self.square - 2 * inner + model), 0.0) / self.square)


def _contract_rest(partial: Tensor, rest: Sequence[Tensor]) -> Tensor:
    """Sum a partial product (rank, size, *sizes) against all of `rest`: (rank, size)."""
    weights = rest[0]
    for rows in rest[1:]:
        weights = (weights[:, :, None] * rows[:, None, :]).flatten(1)
    return torch.bmm(partial.flatten(2), weights[:, :, None]).squeeze(-1)


def _contract_others(small: Tensor, factors: Sequence[Tensor], keep: int) -> Tensor:
    """Sum (rank, *sizes) against every factor but one: (rank, size of that one)."""
    for mode in reversed(range(len(factors))):
        if mode != keep:
            axis = mode + 1
            shape = [1] * small.ndim
            shape[0], shape[axis] = factors[mode].shape
            small = (small * factors[mode].view(shape)).sum(axis, keepdim=True)
    return small.flatten(1)


def _hadamard(grams: Sequence[Tensor], skip: int) -> Tensor:
    product = torch.ones_like(grams[0])
    for mode, matrix in enumerate(grams):
        if mode != skip:
            product = product * matrix
    return product


def _least_squares(product: Tensor, grams: list[Tensor], mode: int, previous: Tensor) -> Tensor:
    """Solve `normal @ rows = product` near the previous rows, and renew this mode's Gram matrix.

    The proximal term makes collinear terms harmless and keeps the sweep monotone.
    """
    normal = _hadamard(grams, mode)
    damping = 1e-7 * normal.diagonal().mean().clamp(min=torch.finfo(normal.dtype).tiny)
    damped = normal.clone()
    damped.diagonal().add_(damping)
    root, failed = torch.linalg.cholesky_ex(damped)
    wanted = product + damping * previous
    if failed:
        rows = torch.linalg.pinv(normal.double(), hermitian=True, rtol=1e-7).to(normal.dtype) @ product
    else:
        rows = torch.cholesky_solve(wanted, root)
    grams[mode] = rows @ rows.mT
    return rows


def _balanced(factors: Sequence[Tensor]) -> list[Tensor]:
    """The same terms with the same length in every mode; a vanished term stays zero."""
    lengths = torch.stack([torch.linalg.vector_norm(rows, dim=1) for rows in factors])
    goal = lengths.log().mean(0).exp()
    scale = torch.where(lengths > 0, goal / lengths, 0.0)
    return [rows * share[:, None] for rows, share in zip(factors, scale, strict=True)]


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
    product = others[0]
    for factor in others[1:]:
        product = (product[:, :, None] * factor[:, None, :]).flatten(1)
    dense = (rows[largest].mT @ product).reshape(-1, *(factor.shape[1] for factor in others))
    return dense.movedim(0, largest)


def _power_of_two(tensor: Tensor) -> float:
    largest = float(tensor.abs().max())
    return 2.0 ** math.floor(math.log2(largest)) if largest > 0 else 1.0
