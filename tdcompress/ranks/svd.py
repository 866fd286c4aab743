"""SVD: parameters, ranks, and the curve of error against rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tdcompress.decompositions.algebra import squared_singular_values
from tdcompress.ranks.budget import points_at, tail_shares
from tdcompress.shapes import Point, Rank
from tdcompress.threads import threads_by_kernel


def svd_parameters(modes: Sequence[int], rank: Sequence[int]) -> int:
    """Parameters of a truncated SVD, `modes` = (out, in, first, second): the kernel's size in either of two stages.

    >>> svd_parameters((64, 64, 9, 1), (5,)), svd_parameters((64, 64, 3, 3), (5,))
    (3200, 1920)
    """
    out, inner, first, second = modes
    return rank[0] * (inner * first + second * out)


def svd_ranks(modes: Sequence[int], budget: int) -> list[Rank]:
    """The largest rank of a truncated SVD within `budget` parameters; none if none fits.

    >>> svd_ranks((64, 64, 3, 3), 3686)
    [(9,)]
    """
    out, inner, first, second = modes
    rank = min(budget // svd_parameters(modes, (1,)), inner * first, second * out)
    return [(rank,)] if rank else []


@threads_by_kernel
def svd_curve(kernels: Tensor, budgets: Sequence[int]) -> list[Point]:
    """Exact: the tail of the singular values. `kernels`: (groups, out, in, first, second)."""
    rows = [kernel.permute(0, 3, 1, 2).flatten(0, 1).flatten(1) for kernel in kernels]
    tail = tail_shares(torch.stack([squared_singular_values(matrix) for matrix in rows]).sum(0))
    return points_at(budgets, lambda budget: [(rank, tail[rank[0]]) for rank in svd_ranks(kernels.shape[1:], budget)])
