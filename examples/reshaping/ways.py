"""The ways to spend a layer's budget that are compared: the SVD, and three decompositions of the matrix as a tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from tdcompress.decompositions import Reshape, blr, kronecker, svd, ttm
from tdcompress.ranks import (
    ReshapedRank,
    blr_curve,
    blr_parameters,
    kronecker_curve,
    kronecker_multiply_adds,
    kronecker_parameters,
    ttm_multiply_adds,
    ttm_parameters,
    ttm_ranks,
)


@dataclass(frozen=True)
class Approximation:
    """A matrix under a budget.

    Attributes:
        matrix: what stands for the original one.
        rank: the rank, as text.
        shape: how the original was read, as text.
        parameters: of the factors.
        multiply_adds: of one row of inputs.
    """

    matrix: Tensor
    rank: str
    shape: str
    parameters: int
    multiply_adds: int


Rule = Literal["balanced", "best"]
Way = Callable[[Tensor, Sequence[int]], list[Approximation | None]]  # a matrix, budgets -> for each what fits, if any


def _by_svd(matrix: Tensor, budgets: Sequence[int]) -> list[Approximation | None]:
    found: list[Approximation | None] = []
    for budget in budgets:
        rank = min(budget // sum(matrix.shape), *matrix.shape)
        cost = rank * sum(matrix.shape)
        found.append(Approximation(svd(matrix, rank).to_dense(), str(rank), "", cost, cost) if rank else None)
    return found


def _by_kronecker(reshape: Rule, matrix: Tensor, budgets: Sequence[int]) -> list[Approximation | None]:
    def solved(best: ReshapedRank) -> Approximation:
        found = kronecker(matrix, best.rank[0], best.reshape).to_dense()
        costs = (kronecker_parameters(best.reshape, best.rank), kronecker_multiply_adds(best.reshape, best.rank))
        return Approximation(found, str(best.rank[0]), as_text(best.reshape), *costs)

    curves = (kronecker_curve(matrix[None], [budget], reshape) for budget in budgets)
    return [solved(best[0]) if best else None for best in curves]


def _by_blr(reshape: Rule, matrix: Tensor, budgets: Sequence[int]) -> list[Approximation | None]:
    def solved(best: ReshapedRank) -> Approximation:
        cost = blr_parameters(best.reshape, best.rank)
        found = blr(matrix, best.rank[0], best.reshape).to_dense()
        return Approximation(found, str(best.rank[0]), as_text(best.reshape), cost, cost)

    curves = (blr_curve(matrix[None], [budget], reshape) for budget in budgets)
    return [solved(best[0]) if best else None for best in curves]


def _by_ttm(reshape: Rule, matrix: Tensor, budgets: Sequence[int]) -> list[Approximation | None]:
    def solved(candidates: Sequence[ReshapedRank]) -> Approximation:
        trains = [ttm(matrix, one.rank, one.reshape) for one in candidates]
        best = min(trains, key=lambda train: train.solution.relative_error)
        costs = (ttm_parameters(best.reshape, best.rank), ttm_multiply_adds(best.reshape, best.rank))
        return Approximation(best.to_dense(), " ".join(map(str, best.rank)), as_text(best.reshape), *costs)

    # Three and four cores: with two it is the sum of Kronecker products, which is a way by itself.
    found = (ttm_ranks(matrix[None], budget, reshape, cores=(3, 4)) for budget in budgets)
    return [solved(candidates) if candidates else None for candidates in found]


WAYS: dict[str, Way] = {
    "svd": _by_svd,
    **{
        f"{name}, {reshape}": partial(way, reshape)
        for name, way in (("kronecker", _by_kronecker), ("ttm", _by_ttm), ("blr", _by_blr))
        for reshape in ("balanced", "best")
    },
}


def as_text(reshape: Reshape) -> str:
    """The factors of the rows and of the columns; an asterisk where they are strided.

    >>> as_text(Reshape((4, 8), (2, 5), strided_columns=True))
    '4·8 × 2·5*'
    """
    rows, columns = ("·".join(map(str, side)) for side in (reshape.rows, reshape.columns))
    return f"{rows}{'*' * reshape.strided_rows} × {columns}{'*' * reshape.strided_columns}"
