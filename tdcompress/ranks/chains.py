"""All chains of two to four cores through the bonds of a matrix, compared under many budgets at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from tdcompress.decompositions.reshape import Reshape
from tdcompress.shapes import Rank

_GRID = 16  # ranks of a bond that are compared
_KEPT = 48  # shapes for a budget; there may be a step of the grid between what two of them could lose and what they do


class Tails(Protocol):
    """The spectra of a matrix, or estimates of them."""

    shape: tuple[int, int]

    def unfolding(self, reshape: Reshape) -> np.ndarray:
        """[r]: the share that is lost if r singular values are kept of the first core's axes against the rest."""


@dataclass(frozen=True)
class Family:
    """The chains that are made of some bonds.

    Attributes:
        bonds: reshapes into what is before a bond and what is after it, all strided alike.
        cores: how many a chain may have.
    """

    bonds: tuple[Reshape, ...]
    cores: tuple[int, ...]


@dataclass(frozen=True)
class _Ends:
    """Ways to go on from a bond to one end of the chain: what they cost and lose, by growing cost and falling loss."""

    cost: np.ndarray
    lost: np.ndarray
    bond: np.ndarray  # the other bond, as its place in the family; −1 for none
    rank: np.ndarray


@dataclass(frozen=True)
class _Chain:
    """A chain with ranks, and what it loses."""

    lost: float
    bonds: tuple[int, ...]
    rank: Rank


class ChainSearch:
    """What the chains of a family lose, as the sum of the tails of their bonds, at ranks of a grid.

    Every chain has a bond in the middle, and given its rank both ends of the chain are independent. So the ends are
    sorted once, by what they cost, and for a budget the best pair of them is looked up.

    Args:
        spectra: of the matrix.
        family: the chains.
        budgets: parameters for one group.
    """

    def __init__(self, spectra: Tails, family: Family, budgets: Sequence[int]) -> None:
        self.family, self.bonds, self.budgets = family, family.bonds, np.asarray(budgets)
        self.total = math.prod(spectra.shape)
        self.sizes = np.array([one.rows[0] * one.columns[0] for one in self.bonds])
        self.places = np.array([(one.rows[0], one.columns[0]) for one in self.bonds]).reshape(-1, 2)
        # A core beside a bond of rank r has at least r² entries, or r is more than it can fill.
        most = max(1, math.isqrt(max(budgets, default=0) // 2))
        self.tails = [spectra.unfolding(one) for one in self.bonds]
        self.ranks = [_spread(min(len(tail) - 1, most)) for tail in self.tails]
        self.best: list[dict[tuple[int, int], _Chain]] = [{} for _ in budgets]
        self.bar = np.full(len(budgets), math.inf)

    def run(self) -> list[list[tuple[Reshape, Rank]]]:
        """For every budget the best few shapes, with ranks of the grid; those of two cores with the largest there are.

        Each is the best of those of as many cores that lose most at the same bond: the others differ from it by bonds
        that lose hardly anything, and would leave no room for the rest.
        """
        if 2 in self.family.cores:
            self._note_two_cores()
        for middle in range(len(self.bonds) if max(self.family.cores) > 2 else 0):
            befores, afters = self._beyond(middle, before=True), self._beyond(middle, before=False)
            for rank in self.ranks[middle]:
                if self.tails[middle][rank] < self.bar.max(initial=0.0):  # or nothing can be better than what is kept
                    self._join(middle, int(rank), befores, afters)
        return [
            [(_shape([self.bonds[place] for place in one.bonds]), one.rank) for one in some.values()]
            for some in self.best
        ]

    def _note_two_cores(self) -> None:
        for index, budget in enumerate(self.budgets):
            for bond, (size, tail) in enumerate(zip(self.sizes, self.tails, strict=True)):
                rank = min(int(budget) // int(size + self.total // size), len(tail) - 1)
                if rank:
                    self._keep(index, _Chain(float(tail[rank]), (bond,), (rank,)))

    def _beyond(self, middle: int, *, before: bool) -> tuple[np.ndarray, ...]:
        """All bonds between `middle` and one end, at all ranks: (bond, rank, loss, entries of either core)."""
        larger, smaller = (self.places[middle], self.places) if before else (self.places, self.places[middle])
        inside = (larger % smaller == 0).all(-1) & (self.sizes != self.sizes[middle])
        chosen = np.flatnonzero(inside)
        bond = np.repeat(chosen, [len(self.ranks[i]) for i in chosen]) if len(chosen) else chosen
        rank = np.concatenate([self.ranks[i] for i in chosen]) if len(chosen) else chosen
        lost = np.concatenate([self.tails[i][self.ranks[i]] for i in chosen]) if len(chosen) else chosen
        if before:
            return bond, rank, lost, self.sizes[bond], self.sizes[middle] // self.sizes[bond]
        return bond, rank, lost, self.total // self.sizes[bond], self.sizes[bond] // self.sizes[middle]

    def _join(self, middle: int, rank: int, befores: tuple[np.ndarray, ...], afters: tuple[np.ndarray, ...]) -> None:
        """Take what is best with `rank` at the middle bond into account."""
        after = _sorted_ends(rank, *afters)
        if 3 in self.family.cores:
            self._note(middle, rank, _single(self.sizes[middle] * rank), after)
        if 4 in self.family.cores:
            self._note(middle, rank, _sorted_ends(rank, *befores), after)

    def _note(self, middle: int, rank: int, before: _Ends, after: _Ends) -> None:
        if not len(before.cost) or not len(after.cost):
            return
        room = self.budgets - before.cost[:, None]
        place = np.searchsorted(after.cost, room, side="right") - 1
        lost = np.where(place >= 0, before.lost[:, None] + after.lost[place], math.inf)
        best, here = lost.argmin(0), float(self.tails[middle][rank])
        for index in np.flatnonzero(here + lost[best, np.arange(len(self.budgets))] < self.bar):
            one, other = best[index], place[best[index], index]
            parts = [(before.bond[one], before.rank[one]), (middle, rank), (after.bond[other], after.rank[other])]
            bonds, ranks = zip(*((int(bond), int(r)) for bond, r in parts if bond >= 0), strict=True)
            self._keep(int(index), _Chain(here + float(lost[one, index]), bonds, ranks))

    def _keep(self, index: int, chain: _Chain) -> None:
        kept = self.best[index]
        _, most = max((float(self.tails[bond][r]), bond) for bond, r in zip(chain.bonds, chain.rank, strict=True))
        key = most, len(chain.bonds)
        if key not in kept or chain.lost < kept[key].lost:
            kept[key] = chain
        if len(kept) > _KEPT:
            del kept[max(kept, key=lambda key: kept[key].lost)]
        if len(kept) == _KEPT:
            self.bar[index] = max(one.lost for one in kept.values())


def _spread(most: int) -> np.ndarray:
    """Whole numbers up to `most`, growing by about the same factor."""
    return np.unique(np.geomspace(1, most, _GRID).round().astype(int))


def _single(cost: int) -> _Ends:
    """The end that is one core."""
    return _Ends(np.array([cost]), np.zeros(1), np.array([-1]), np.array([1]))


def _sorted_ends(
    middle: int, bond: np.ndarray, rank: np.ndarray, lost: np.ndarray, outer: np.ndarray, inner: np.ndarray
) -> _Ends:
    """The ends of two cores that lose less than all cheaper ones.

    Args:
        middle: the rank of the bond that they go on from.
        bond: the bond between the two cores.
        rank: its rank.
        lost: its tail.
        outer: rows times columns of the core at the end.
        inner: those of the core between the bonds.
    """
    fits = (rank <= inner * middle) & (middle <= inner * rank)
    cost = rank * (outer + inner * middle)
    order = np.flatnonzero(fits)
    order = order[np.lexsort((lost[order], cost[order]))]
    least = np.minimum.accumulate(lost[order])
    order = order[np.r_[True, least[1:] < least[:-1]]] if len(order) else order
    return _Ends(cost[order], lost[order], bond[order], rank[order])


def _shape(bonds: Sequence[Reshape]) -> Reshape:
    """The reshape with these bonds."""
    ends = [(1, 1), *((one.rows[0], one.columns[0]) for one in bonds), bonds[0].shape]
    steps = [(after[0] // before[0], after[1] // before[1]) for before, after in pairwise(ends)]
    rows, columns = zip(*steps, strict=True)
    return Reshape(rows, columns, bonds[0].strided_rows, bonds[0].strided_columns)
