"""Tensor train: ranks under a budget, and the curve of error against parameters.

What the outer bonds lose is in Tucker's table; what the inner ones do, in the spectra of the core's own unfoldings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tdcompress.decompositions import TuckerOptions, bridge, tensor_train_limits, tucker_limits
from tdcompress.decompositions.algebra import squared_singular_values
from tdcompress.ranks.budget import grown, kept_share, points_at, tail_shares
from tdcompress.ranks.train_chain import chain_of, fills, tt_parameters
from tdcompress.ranks.train_search import TrainSearch, bond_squares
from tdcompress.ranks.tucker import best_block, core_energies, hosvd_core, tucker_ranks
from tdcompress.shapes import Point, Rank
from tdcompress.threads import threads_by_kernel

_BLOCKS = 12  # outer ranks that the curve tries


@threads_by_kernel
def tt_ranks(kernels: Tensor, budget: int) -> list[Rank]:
    """The inner ranks along (in, *spatial, out) within `budget` that promise to lose least; none if none fits.

    The outer two bonds cut a block out of the HOSVD core, which says what they lose; what the inner bonds lose is
    read from the singular values of that block's own unfoldings. Their sum bounds the squared error. The outer
    ranks are searched by moves that are halved until single steps no longer help.

    Args:
        kernels: shape (groups, out, in, *spatial).
        budget: parameters for one group.
    """
    modes = tuple(kernels.shape[1:])
    if len(modes) == 2:
        rank = min(budget // sum(modes), *modes)
        return [(rank,)] if rank else []
    if len(modes) == 3:  # without an inner bond the train is Tucker, whose core costs the same
        return [rank[::-1] for rank in tucker_ranks(kernels, budget, TuckerOptions(candidates=1))]
    search = TrainSearch(kernels, budget)
    best = search.run()
    return [] if best is None else [grown(best, search.useful)]


def tt_rule(kernel_shape: Sequence[int], ratio: float) -> Rank:
    """The rank that tensorly-torch would take for `ratio`: the paper's rule, proportional to the shape.

    Args:
        kernel_shape: (out, in / groups, *kernel_size), spatial sizes of 1 included.
        ratio: the share of the parameters to remove. Far less is kept than asked.

    Returns:
        The inner ranks of the order (in, *kernel_size, out), cut to what is feasible.

    Raises:
        CompressionError: `ratio` is no number in (0, 1).

    >>> tt_rule((64, 64, 3, 3), 0.9)
    (26, 2, 26)
    """
    kept_share(ratio)  # for its check of the ratio
    return bridge.tensor_train_rank(kernel_shape, 1 - ratio)


@threads_by_kernel
def tt_curve(kernels: Tensor, budgets: Sequence[int]) -> list[Point]:
    """A bound on TT-SVD: the energy outside a block of the HOSVD core, and the tails of the block's own unfoldings.

    The blocks are those that Tucker would take at growing budgets. `kernels`: (groups, out, in, *spatial).
    """
    modes = tuple(kernels.shape[1:])
    sizes, limits = chain_of(modes), tucker_limits(modes, (0, 1))
    if len(modes) == 2:
        tail = tail_shares(torch.stack([squared_singular_values(kernel) for kernel in kernels]).sum(0))
        most = min(modes)
        ranks = {budget: min(budget // sum(modes), most) for budget in budgets}
        return points_at(budgets, lambda budget: [((ranks[budget],), tail[ranks[budget]])] if ranks[budget] else [])
    cores = [hosvd_core(kernel) for kernel in kernels]
    energy = core_energies(cores)
    total = float(energy[-1, -1]) or 1.0
    tried = np.geomspace(sum(sizes), 2 * math.prod(modes), _BLOCKS).astype(int)
    outer = {best_block(energy, modes, limits, int(budget)) for budget in tried} - {None}
    tails = {pair: _block_tails(cores, pair) for pair in outer if pair}

    def at(budget: int) -> list[Point]:
        chains = []
        for (last, first), inside in tails.items():
            rank = _inner(sizes, first, last, budget)
            if rank:
                lost = sum(tail[min(r, len(tail) - 1)] for tail, r in zip(inside, rank[1:-1], strict=True))
                chains.append(((total - float(energy[last - 1, first - 1]) + lost) / total, rank))
        return [(rank, min(1.0, max(0.0, lost))) for lost, rank in [min(chains)]] if chains else []

    return points_at(budgets, at)


def _block_tails(cores: Sequence[Tensor], pair: Rank) -> list[list[float]]:
    """For every inner bond, [r]: the energy that the leading block of the cores loses there at rank r."""
    chains = [core[: pair[0], : pair[1]].movedim(0, -1) for core in cores]
    tails = []
    for bond in range(2, chains[0].ndim - 1):
        squares = bond_squares(chains, bond)
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
    return rank if low and fills(sizes, rank) else None
