"""Kernel + budgets -> what each method loses at each, read off one factorization and no sweeps.

A point is a rank and the squared relative error that it promises. Points are estimates: sweeps do a little better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tdcompress.decompositions import tensor_train_limits, tucker_limits
from tdcompress.decompositions.algebra import squared_singular_values
from tdcompress.ranks.budget import Rank, svd_ranks, tt_parameters
from tdcompress.ranks.tucker import best_block, core_energies, hosvd_core
from tdcompress.threads import threads_by_kernel

Point = tuple[Rank, float]
_BLOCKS = 12  # outer ranks of the tensor train that are tried


@threads_by_kernel
def svd_curve(kernels: Tensor, budgets: Sequence[int]) -> list[Point]:
    """Exact: the tail of the singular values. `kernels`: (groups, out, in, first, second)."""
    rows = [kernel.permute(0, 3, 1, 2).flatten(0, 1).flatten(1) for kernel in kernels]
    tail = tail_shares(torch.stack([squared_singular_values(matrix) for matrix in rows]).sum(0))
    return _points(budgets, lambda budget: [(rank, tail[rank[0]]) for rank in svd_ranks(kernels.shape[1:], budget)])


@threads_by_kernel
def tucker_curve(kernels: Tensor, budgets: Sequence[int]) -> list[Point]:
    """Exact for the truncated HOSVD: the energy outside a block of its core. `kernels`: (groups, out, in, *spatial)."""
    modes = tuple(kernels.shape[1:])
    energy = core_energies([hosvd_core(kernel) for kernel in kernels])
    total = float(energy[-1, -1]) or 1.0

    def at(budget: int) -> list[Point]:
        best = best_block(energy, modes, tucker_limits(modes, (0, 1)), budget)
        return [] if best is None else [(best, 1 - float(energy[best[0] - 1, best[1] - 1]) / total)]

    return _points(budgets, at)


@threads_by_kernel
def tt_curve(kernels: Tensor, budgets: Sequence[int]) -> list[Point]:
    """A bound on TT-SVD: the energy outside a block of the HOSVD core, and the tails of the block's own unfoldings.

    The blocks are those that Tucker would take at growing budgets. `kernels`: (groups, out, in, *spatial).
    """
    modes = tuple(kernels.shape[1:])
    sizes, limits = (modes[1], *modes[2:], modes[0]), tucker_limits(modes, (0, 1))
    if len(modes) == 2:
        tail = tail_shares(torch.stack([squared_singular_values(kernel) for kernel in kernels]).sum(0))
        most = min(modes)
        ranks = {budget: min(budget // sum(modes), most) for budget in budgets}
        return _points(budgets, lambda budget: [((ranks[budget],), tail[ranks[budget]])] if ranks[budget] else [])
    cores = [hosvd_core(kernel) for kernel in kernels]
    energy = core_energies(cores)
    total = float(energy[-1, -1]) or 1.0
    tried = np.geomspace(sum(sizes), 2 * math.prod(modes), _BLOCKS).astype(int)
    outer = {best_block(energy, modes, limits, int(budget)) for budget in tried} - {None}
    tails = {pair: _block_tails(cores, pair) for pair in outer if pair}

    def at(budget: int) -> list[Point]:
        found = []
        for (last, first), inside in tails.items():
            rank = _inner(sizes, first, last, budget)
            if rank:
                lost = sum(tail[min(r, len(tail) - 1)] for tail, r in zip(inside, rank[1:-1], strict=True))
                found.append(((total - float(energy[last - 1, first - 1]) + lost) / total, rank))
        return [(rank, min(1.0, max(0.0, lost))) for lost, rank in [min(found)]] if found else []

    return _points(budgets, at)


def _block_tails(cores: Sequence[Tensor], pair: Rank) -> list[list[float]]:
    """For every inner bond, [r]: the energy that the leading block of the cores loses there at rank r."""
    chains = [core[: pair[0], : pair[1]].movedim(0, -1) for core in cores]
    tails = []
    for bond in range(2, chains[0].ndim - 1):
        matrices = [chain.reshape(math.prod(chain.shape[:bond]), -1) for chain in chains]
        squares = torch.stack([squared_singular_values(matrix) for matrix in matrices]).sum(0)
        tails.append([share * float(squares.sum()) for share in tail_shares(squares)])
    return tails


def _inner(sizes: Sequence[int], first: int, last: int, budget: int) -> Rank | None:
    """The rank with the largest inner entries, as alike as can be, that fit between two outer ones; None if none do."""
    limits = tensor_train_limits((first, *sizes[1:-1], last))[1:-1]

    def rank_at(inner: int) -> Rank:
        return (first, *(min(inner, limit) for limit in limits), last)

    low, high = 0, max(limits, default=1)
    modes = (sizes[-1], *sizes[:-1])
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if tt_parameters(modes, rank_at(middle)) <= budget else (low, middle - 1)
    rank = rank_at(low)
    bounds = zip((1, *rank), sizes, (*rank, 1), strict=True)
    return rank if low and all(left <= size * right and right <= size * left for left, size, right in bounds) else None


def tail_shares(squares: Tensor) -> list[float]:
    """[r]: the share of the energy that is lost if r values are kept."""
    total = float(squares.sum()) or 1.0
    lost = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)]) / total
    return [float(share) for share in lost]


def _points(budgets: Sequence[int], at: Callable[[int], list[Point]]) -> list[Point]:
    """The points at all budgets, each rank once."""
    return list({rank: (rank, lost) for budget in budgets for rank, lost in at(budget)}.values())
