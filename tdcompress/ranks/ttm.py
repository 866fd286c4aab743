"""The shape and the ranks of a tensor-train matrix under a budget.

What a train loses is bounded by the sum of the tails of its unfoldings (Oseledets 2011). An unfolding is told by the
rows and columns before the bond, so a few hundred spectra serve the many thousand shapes of up to four cores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from tdcompress.decompositions.reshape import Reshape, as_reshape
from tdcompress.decompositions.reshaped_options import Shapes
from tdcompress.decompositions.ttm import ttm_limits
from tdcompress.errors import CompressionError
from tdcompress.ranks.budget import grown
from tdcompress.ranks.chains import ChainSearch, Family, Tails
from tdcompress.ranks.reshaped import ReshapedRank, Spectra, as_split, grids, is_svd
from tdcompress.ranks.sketches import SketchedSpectra, is_small, looked_at
from tdcompress.ranks.ttm_costs import ttm_parameters
from tdcompress.shapes import Rank
from tdcompress.threads import threads_by_kernel

_CORES = (2, 3, 4)


def ttm_least(shape: tuple[int, int], reshape: Shapes = "best", cores: Sequence[int] = _CORES) -> int | None:
    """The fewest parameters of a train, at rank one in all bonds, of the shapes of `ttm_ranks`; None if there are none.

    >>> ttm_least((16, 16), cores=(2,)), ttm_least((16, 16)), ttm_least((7, 5))
    (32, 16, None)
    """
    if reshape != "best":
        given = [as_reshape(reshape, shape, number) for number in (cores if reshape == "balanced" else [0])]
        return min(sum(one.sizes) for one in given)
    costs = []
    places = np.array(
        [(one.rows[0], one.columns[0]) for family in _families(shape, reshape, cores) for one in family.bonds]
    )
    if not len(places):
        return None
    sizes = places.prod(1)
    inside = (places[None] % places[:, None] == 0).all(-1) & (sizes[None] > sizes[:, None])
    between = np.where(inside, sizes[None] // sizes[:, None], math.inf)
    least = sizes.astype(float)  # of the cores before every bond
    for number in range(2, max(cores) + 1):
        if number in cores:
            costs.append(float((least + math.prod(shape) // sizes).min()))
        least = (least[:, None] + between).min(0)
    return None if math.isinf(min(costs)) else int(min(costs))


@threads_by_kernel
def ttm_ranks(
    kernels: Tensor, budget: int, reshape: Shapes = "best", *, cores: Sequence[int] = _CORES, count: int = 3
) -> list[ReshapedRank]:
    """The shapes with their ranks within `budget` that promise to lose least, best first; none if none fits.

    Args:
        kernels: shape (groups, rows, columns).
        budget: parameters for one group.
        reshape: `"best"` for all shapes, with the columns' first factor slow or fast, save those with a bond that has
            all rows before it and all columns after it, or the reverse, which is that of an SVD; `"balanced"`; or a
            shape.
        cores: of how many cores shapes may be, from 2 to 4; of no account for a shape that is given.
        count: how many to return. Of matrices with more than 2¹⁹ entries the shapes are compared by estimates of their
            spectra, see `tdcompress.ranks.sketches`; those of the best few are computed.

    Raises:
        CompressionError: the reshape does not fit.

    >>> import torch
    >>> kernel = torch.kron(torch.kron(torch.ones(2, 4), torch.eye(3)), torch.ones(3, 2))
    >>> best = ttm_ranks(kernel[None], 25)[0]
    >>> best.rank, round(best.lost, 6), ttm_parameters(best.reshape, best.rank) <= 25
    ((1, 1), 0.0, True)
    """
    return _chosen(Spectra(kernels), [budget], reshape, cores, count)[0]


@threads_by_kernel
def ttm_candidates(
    kernels: Tensor, budgets: Sequence[int], reshape: Shapes = "best", *, cores: Sequence[int] = _CORES, count: int = 3
) -> list[list[ReshapedRank]]:
    """`ttm_ranks` for every budget, with all spectra computed once."""
    return _chosen(Spectra(kernels), budgets, reshape, cores, count)


def ttm_bound(spectra: Spectra, reshape: Reshape, rank: Sequence[int]) -> float:
    """The share of the squared norm that a train loses at the most: the tails of its unfoldings."""
    return min(1.0, sum(spectra.unfolding_at(bond, r) for bond, r in zip(_bonds(reshape), rank, strict=True)))


@threads_by_kernel
def ttm_curve(
    kernels: Tensor, budgets: Sequence[int], reshape: Shapes = "best", *, cores: Sequence[int] = _CORES
) -> list[ReshapedRank]:
    """For every budget the first of `ttm_ranks`; none where none fits. `lost` is a bound.

    Args:
        kernels: shape (groups, rows, columns).
        budgets: parameters for one group.
        reshape: as for `ttm_ranks`.
        cores: as for `ttm_ranks`.

    Raises:
        CompressionError: the reshape does not fit.
    """
    return [candidates[0] for candidates in _chosen(Spectra(kernels), budgets, reshape, cores, 1) if candidates]


def _chosen(
    spectra: Spectra, budgets: Sequence[int], reshape: Shapes, cores: Sequence[int], count: int
) -> list[list[ReshapedRank]]:
    if not cores or set(cores) - set(_CORES):
        raise CompressionError(f"a tensor-train matrix has 2, 3 or 4 cores here, got cores={tuple(cores)}.")
    families = _families(spectra.shape, reshape, cores)
    if reshape != "best" or is_small(spectra.kernels):
        return [_apart(spectra, some)[:count] for some in _searched(spectra, budgets, families)]
    sketch, number = SketchedSpectra(spectra.kernels), looked_at(spectra.kernels)
    chosen = []
    for some, budget in zip(_searched(sketch, budgets, families), budgets, strict=True):
        # Of two cores as many as of the sums of Kronecker products that they are, of any number half as many.
        two = _apart(sketch, [one for one in some if one.reshape.cores == 2])[:number]
        promising = dict.fromkeys([*_apart(sketch, some)[: max(count, number // 2)], *two])
        exact = {one: _exactly(spectra, one, budget) for one in promising}
        best = {_worst_bond(sketch, one): exact[one] for one in sorted(exact, key=lambda one: -exact[one].lost)}
        chosen.append(sorted(best.values(), key=lambda one: one.lost)[:count])
    return chosen


def _exactly(spectra: Spectra, estimated: ReshapedRank, budget: int) -> ReshapedRank:
    """A shape with what it loses, and ranks by that, where an estimate has led there."""
    shape, rank = estimated.reshape, estimated.rank
    if all(map(spectra.is_quick, _bonds(shape))):
        return _refined(spectra, shape, rank, budget)
    return replace(estimated, lost=ttm_bound(spectra, shape, rank))


def _searched(spectra: Tails, budgets: Sequence[int], families: Iterable[Family]) -> list[list[ReshapedRank]]:
    """For every budget the shapes that are found, best first."""
    candidates: list[list[ReshapedRank]] = [[] for _ in budgets]
    for family in families:
        for place, shapes in enumerate(ChainSearch(spectra, family, budgets).run()):
            candidates[place] += [_refined(spectra, *one, budgets[place]) for one in shapes]
    return [sorted(some, key=lambda one: one.lost) for some in candidates]


def _apart(spectra: Tails, shapes: Iterable[ReshapedRank]) -> list[ReshapedRank]:
    """The first of the shapes for every bond that loses most: the others are much like it."""
    first: dict[Reshape, ReshapedRank] = {}
    for one in shapes:
        first.setdefault(_worst_bond(spectra, one), one)
    return list(first.values())


def _worst_bond(spectra: Tails, chosen: ReshapedRank) -> Reshape:
    """The bond that loses most, as `as_split` has it."""
    pairs = zip(_bonds(chosen.reshape), chosen.rank, strict=True)
    bond, _ = max(pairs, key=lambda pair: float(spectra.unfolding(pair[0])[pair[1]]))
    return as_split(bond)


def _families(shape: tuple[int, int], reshape: Shapes, cores: Sequence[int]) -> Iterator[Family]:
    if reshape == "best":
        for strided in ((False, False), (False, True)):
            bonds = (bond for bond in grids(shape, strided=[strided]) if not is_svd(bond))
            yield Family(tuple(bonds), tuple(cores))
        return
    for number in cores if reshape == "balanced" else [0]:
        given = as_reshape(reshape, shape, number)
        if not 2 <= given.cores <= 4:
            raise CompressionError(f"a tensor-train matrix has 2, 3 or 4 cores here, the reshape has {given.cores}.")
        yield Family(tuple(_bonds(given)), (given.cores,))


def _bonds(reshape: Reshape) -> list[Reshape]:
    """For every bond the reshape into the cores before it and those after it."""
    strided, bonds = (reshape.strided_rows, reshape.strided_columns), range(1, reshape.cores)
    sides = [[(math.prod(side[:k]), math.prod(side[k:])) for side in (reshape.rows, reshape.columns)] for k in bonds]
    return [Reshape(rows, columns, *strided) for rows, columns in sides]


def _refined(spectra: Tails, shape: Reshape, rank: Rank, budget: int) -> ReshapedRank:
    """The best ranks for a shape: exact for two and three cores, for four by turns from where the grid has led."""
    tails = [spectra.unfolding(bond) for bond in _bonds(shape)]
    if shape.cores == 2:
        rank = (min(budget // sum(shape.sizes), *ttm_limits(shape)),)
    for _ in range(4):
        for bond in range(shape.cores - 2):
            rank = _best_pair(shape, rank, bond, tails, budget)
    rank = grown(rank, lambda wider: _is_useful(shape, wider, budget))
    lost = min(1.0, sum(float(tail[r]) for tail, r in zip(tails, rank, strict=True)))
    return ReshapedRank(lost, rank, shape)


def _is_useful(shape: Reshape, rank: Rank, budget: int) -> bool:
    """Whether a rank fits the budget and every entry can be filled by its neighbours."""
    ends = zip((1, *rank), shape.sizes, (*rank, 1), strict=True)
    return (
        all(r <= limit for r, limit in zip(rank, ttm_limits(shape), strict=True))
        and all(left <= size * right and right <= size * left for left, size, right in ends)
        and ttm_parameters(shape, rank) <= budget
    )


def _best_pair(shape: Reshape, rank: Rank, bond: int, tails: Sequence[np.ndarray], budget: int) -> Rank:
    """Two neighbouring ranks that lose least, the others given: all of the first, and the largest second that fits."""
    left, right = (1, *rank)[bond], (*rank, 1)[bond + 2]
    before, between, after = shape.sizes[bond : bond + 3]
    first, second = rank[bond : bond + 2]
    spent = left * before * first + first * between * second + second * after * right
    room = budget - ttm_parameters(shape, rank) + spent
    one = np.arange(-(-left // before), min(left * before, len(tails[bond]) - 1) + 1)
    other = (room - left * before * one) // (between * one + after * right)
    other = np.minimum(other, np.minimum(between * one, min(after * right, len(tails[bond + 1]) - 1)))
    possible = (other >= 1) & (one <= between * other) & (right <= after * other)
    if not possible.any():
        return rank
    lost = np.where(possible, tails[bond][one] + tails[bond + 1][np.maximum(other, 0)], math.inf)
    best = int(lost.argmin())
    return (*rank[:bond], int(one[best]), int(other[best]), *rank[bond + 2 :])
