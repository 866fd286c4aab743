"""Tensor train: parameters, ranks under a budget, and the curve of error against parameters.

What the outer bonds lose is in Tucker's table; what the inner ones do, in the spectra of the core's own unfoldings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from tdcompress.decompositions import TuckerOptions, bridge, tensor_train_limits, tucker_limits
from tdcompress.decompositions.algebra import squared_singular_values
from tdcompress.ranks.budget import grown, kept_share, points_at, tail_shares
from tdcompress.ranks.tucker import best_block, core_energies, hosvd_core, tucker_ranks
from tdcompress.shapes import Point, Rank
from tdcompress.threads import threads_by_kernel

_BLOCKS = 12  # outer ranks that the curve tries
_RESOLUTION = 32  # rank steps finer than such a part of the rank make no difference


def chain_of(modes: Sequence[int]) -> tuple[int, ...]:
    """The sizes along the train, (in, *spatial, out), of a kernel with modes (out, in, *spatial).

    >>> chain_of((128, 64, 3, 5))
    (64, 3, 5, 128)
    """
    return (*modes[1:], modes[0])


def fills(sizes: Sequence[int], rank: Rank) -> bool:
    """Whether every bond of a train can be filled from both sides: it is at most the next one times the mode between.

    >>> fills((64, 3, 3, 128), (40, 4, 12)), fills((64, 3, 3, 128), (40, 4, 13))
    (False, False)
    >>> fills((64, 3, 3, 128), (12, 5, 15))
    True
    """
    bonds = zip((1, *rank), sizes, (*rank, 1), strict=True)
    return all(left <= size * right and right <= size * left for left, size, right in bonds)


def cut_to_chain(sizes: Sequence[int], rank: Rank) -> Rank:
    """A rank cut to the limits, and along the train to what the bond before can fill.

    >>> cut_to_chain((64, 3, 3, 128), (4, 40, 200))
    (4, 12, 36)
    """
    cut, left = [], 1
    for wanted, limit, size in zip(rank, tensor_train_limits(sizes), sizes, strict=False):
        left = min(wanted, limit, left * size)
        cut.append(left)
    return tuple(cut)


def tt_parameters(modes: Sequence[int], rank: Sequence[int]) -> int:
    """Parameters of a tensor train over (in, *spatial, out), `rank` = the inner ranks.

    >>> tt_parameters((64, 64, 3, 3), (40, 4, 12))
    3952
    """
    return sum(left * size * right for left, size, right in zip((1, *rank), chain_of(modes), (*rank, 1), strict=True))


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
    search = _Search(kernels, budget)
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
        squares = _bond_squares(chains, bond)
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


class _Search:
    """Over the two outer ranks, for a budget; the inner ones follow."""

    def __init__(self, kernels: Tensor, budget: int) -> None:
        self.modes, self.budget = tuple(kernels.shape[1:]), budget
        self.sizes = chain_of(self.modes)
        cores = torch.stack([hosvd_core(kernel) for kernel in kernels])  # (groups, ≤ out, ≤ in, *spatial)
        self.chains = cores.movedim(1, -1)
        self.limits = (cores.shape[2], cores.shape[1])
        self.energy = core_energies(list(cores))
        self._seen: dict[tuple[int, int], tuple[float, Rank | None]] = {}

    def run(self) -> Rank | None:
        """The best ranks that were found, or None if even ones do not fit."""
        first, last = self._start()
        if self.lost(first, last)[1] is None:
            return self.lost(1, 1)[1]
        step = max(1, max(first, last) // 4)
        finest = max(1, max(first, last) // _RESOLUTION)
        while step >= finest:
            moves = [(first + a, last + b) for a, b in ((step, 0), (-step, 0), (0, step), (0, -step))]
            better = (move for move in moves if self._inside(*move) and self.lost(*move)[0] < self.lost(first, last)[0])
            replacement = next(better, None)
            if replacement is None:
                step //= 2
            else:
                first, last = replacement
        return self.lost(first, last)[1]

    def _start(self) -> tuple[int, int]:
        """Outer ranks in proportion to their limits, with inner ones as large as those, that use the budget."""
        for share in range(100, 0, -1):
            first, last = (max(1, limit * share // 100) for limit in self.limits)
            inner = [max(first, last)] * (len(self.sizes) - 3)
            if tt_parameters(self.modes, (first, *inner, last)) <= self.budget:
                return first, last
        return 1, 1

    def _inside(self, first: int, last: int) -> bool:
        return 1 <= first <= self.limits[0] and 1 <= last <= self.limits[1]

    def _outside(self, first: int, last: int) -> float:
        """The squared norm of the core outside its leading block."""
        return float(self.energy[-1, -1] - self.energy[last - 1, first - 1])

    def lost(self, first: int, last: int) -> tuple[float, Rank | None]:
        """The bound on the squared error at these outer ranks, and the ranks with the best inner ones."""
        if (first, last) not in self._seen:
            self._seen[first, last] = self._lost(first, last)
        return self._seen[first, last]

    def _lost(self, first: int, last: int) -> tuple[float, Rank | None]:
        block = self.chains[:, :first, ..., :last]
        if tt_parameters(self.modes, (first, *[1] * (len(self.sizes) - 3), last)) > self.budget:
            return math.inf, None
        tails = [_tail(block, bond) for bond in range(2, block.ndim - 2)]
        inner, lost = _best_inner(self.sizes, (first, last), tails, self.budget)
        if inner is None:
            return math.inf, None
        return self._outside(first, last) + lost, (first, *inner, last)

    def useful(self, rank: Rank) -> bool:
        """Whether a rank fits the budget and every entry can be filled by its neighbours."""
        return (
            rank[0] <= self.limits[0]
            and rank[-1] <= self.limits[1]
            and fills(self.sizes, rank)
            and tt_parameters(self.modes, rank) <= self.budget
        )


def _bond_squares(chains: Iterable[Tensor], bond: int) -> Tensor:
    """The squared singular values of the unfoldings at a bond, summed over the groups."""
    matrices = [chain.reshape(math.prod(chain.shape[:bond]), -1) for chain in chains]
    return torch.stack([squared_singular_values(matrix) for matrix in matrices]).sum(0)


def _tail(chains: Tensor, bond: int) -> Tensor:
    """tail[r]: the energy lost in the unfolding at a bond when r singular values are kept, over all groups."""
    squares = _bond_squares(chains, bond)
    return torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)]).cpu()


def _best_inner(
    sizes: Sequence[int], outer: tuple[int, int], tails: Sequence[Tensor], budget: int
) -> tuple[Rank | None, float]:
    """The inner ranks that cut least off the block: all of the first, and for each the largest second that fits.

    A kernel has one inner bond in 2d and two in 3d.
    """
    first, last = outer
    room = budget - sizes[0] * first - sizes[-1] * last
    if len(tails) == 1:
        most = min(sizes[1] * first, sizes[2] * last)
        rank = min(room // (sizes[1] * first + sizes[2] * last), most)
        if rank < 1 or first > sizes[1] * rank or last > sizes[2] * rank:
            return None, math.inf
        return (rank,), float(tails[0][rank])
    one = torch.arange(1, len(tails[0]), device="cpu")
    other = (room - sizes[1] * first * one) // (sizes[2] * one + sizes[3] * last)
    other = other.minimum(sizes[2] * one).clamp(max=min(sizes[3] * last, len(tails[1]) - 1))
    possible = (other >= 1) & (one <= sizes[2] * other) & (first <= sizes[1] * one) & (last <= sizes[3] * other)
    lost = torch.where(possible, tails[0][one] + tails[1][other.clamp(min=0)], math.inf)
    best = int(lost.argmin())
    pair = (int(one[best]), int(other[best]))
    return (None, math.inf) if math.isinf(float(lost[best])) else (pair, float(lost[best]))
