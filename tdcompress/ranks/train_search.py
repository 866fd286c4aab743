"""The ranks of a tensor train under a budget: a search over the outer two, which tell the inner ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tdcompress.decompositions.algebra import squared_singular_values
from tdcompress.ranks.train_chain import chain_of, fills, tt_parameters
from tdcompress.ranks.tucker import core_energies, hosvd_core
from tdcompress.shapes import Rank

_RESOLUTION = 32  # rank steps finer than such a part of the rank make no difference


class TrainSearch:
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


def bond_squares(chains: Iterable[Tensor], bond: int) -> Tensor:
    """The squared singular values of the unfoldings at a bond, summed over the groups."""
    matrices = [chain.reshape(math.prod(chain.shape[:bond]), -1) for chain in chains]
    return torch.stack([squared_singular_values(matrix) for matrix in matrices]).sum(0)


def _tail(chains: Tensor, bond: int) -> Tensor:
    """tail[r]: the energy lost in the unfolding at a bond when r singular values are kept, over all groups."""
    squares = bond_squares(chains, bond)
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
