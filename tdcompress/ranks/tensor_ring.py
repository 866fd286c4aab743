"""Tensor ring: parameters, the ring and the train that a budget buys, and the curve of error against parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tdcompress.decompositions.tensor_ring import TROptions, tensor_ring, tensor_ring_limits
from tdcompress.ranks.budget import grown
from tdcompress.ranks.cp import cp_curve
from tdcompress.ranks.tensor_train import tt_curve, tt_ranks
from tdcompress.ranks.train_chain import chain_of
from tdcompress.shapes import Point, Rank
from tdcompress.threads import threads_by_kernel

_AT_ONCE = 8  # channels that a convolution writes, the least that fills a vector of a processor's registers
_TRIAL = 30  # sweeps that are made to compare sizes of bonds
_NARROW = 16  # channels of the smaller side, from which on a ring has room for what CP does
_POINTS = 8  # rings of narrow kernels that are solved for,
_SWEEPS = 100  # by so many sweeps
_GROUPS = 4  # of a convolution, and up to seven, that are solved for to foresee or compare errors
_OVER_CP = 0.25  # a ring loses 1 + so much · share² times what CP does: less structure where terms are many


def tr_parameters(modes: Sequence[int], rank: Sequence[int]) -> int:
    """Parameters of a tensor ring over (in, *spatial, out), `rank` = the bonds, each before its mode.

    >>> tr_parameters((64, 64, 3, 3), (2, 9, 13, 13)), tr_parameters((64, 64, 3, 3), (1, 40, 4, 12))
    (3674, 3952)
    """
    bonds = zip(rank, chain_of(modes), (*rank[1:], rank[0]), strict=True)
    return sum(before * size * after for before, size, after in bonds)


@threads_by_kernel
def tr_ranks(kernels: Tensor, budget: int, options: TROptions) -> list[Rank]:
    """The ring within `budget` that promises to lose least, where two slices fit, and the train; none if none fits.

    Of the sizes of bonds that the options name, the one is taken that a few sweeps end lowest with.

    Args:
        kernels: shape (groups, out, in, *spatial).
        budget: parameters for one group.
        options: the sizes, and how sweeps are made.
    """
    modes = tuple(kernels.shape[1:])
    rings = [ring_within(modes, budget, bond) for bond in options.bonds]
    tried = list(dict.fromkeys(rank for rank in rings if rank is not None))
    if len(tried) > 1:
        quick, some = replace(options, max_iter=min(_TRIAL, options.max_iter)), _some(kernels)
        tried = [min(tried, key=lambda rank: _lost(some, rank, quick))]
    return list(dict.fromkeys([*tried, *train_ranks(kernels, budget)]))


def train_ranks(kernels: Tensor, budget: int) -> list[Rank]:
    """The ring of one slice that `tt_ranks` gives, with a second slice if that fits; none if none fits."""
    modes = tuple(kernels.shape[1:])
    return [grown((1, *rank), lambda one: _useful(modes, one, budget)) for rank in tt_ranks(kernels, budget)]


def ring_within(modes: Sequence[int], budget: int, bond: int) -> Rank | None:
    """A ring of two slices or more within `budget` whose inner bonds are about `bond`, or less if that is too many.

    The first and the last bond are chosen, a quarter to either side, so that slices use the budget up best; what is
    left goes to single bonds. A multiple of 8 is the last bond as it is: a slice's convolution writes as many channels,
    and processors compute them by eights.

    Args:
        modes: (out, in, *spatial).
        budget: parameters for one group.
        bond: the size.

    Returns:
        (r_0, …), or None if no two slices fit.

    >>> ring_within((128, 128, 3, 3), 73728, 14), ring_within((128, 128, 3, 3), 500, 14)
    ((21, 13, 14, 14), None)
    >>> ring_within((128, 128, 3, 3), 73728, 16)
    (17, 17, 19, 16)
    """
    sizes = range(bond, 0, -1) if tensor_ring_limits(chain_of(modes))[0] > 1 else ()
    rings = (_ring_about(size, modes, budget) for size in sizes)
    return next((rank for rank in rings if rank is not None), None)


def _ring_about(bond: int, modes: Sequence[int], budget: int) -> Rank | None:
    """A ring with inner bonds about as large as `bond`; None if no two slices fit."""
    sizes, reach, held = chain_of(modes), max(1, bond // 4), bond % _AT_ONCE == 0
    limits = tensor_ring_limits(sizes)
    around = range(max(1, bond - reach), bond + reach + 1)
    lasts = [bond] if held else around
    ends = [(first, last) for first in around for last in lasts if first <= limits[1] and last <= limits[-1]]
    found = [rank for pair in ends if (rank := _filled(sizes, pair, budget))[0] > 1]
    if not found:
        return None
    best = max(found, key=lambda rank: rank[0] * (rank[1] * sizes[0] + rank[-1] * sizes[-1]))
    return grown(best, lambda rank: (rank[-1] == bond or not held) and _useful(modes, rank, budget))


@threads_by_kernel
def tr_curve(kernels: Tensor, budgets: Sequence[int], options: TROptions) -> list[Point]:
    """About what the ring or the train loses at each budget, the less of both, where it falls.

    With channels enough a ring loses about what CP with its spatial modes taken together does, whose curve that is,
    and more where it keeps much. Narrow kernels are solved for at a few budgets, and their errors interpolated. What
    the train loses is bounded as its own curve does.

    Args:
        kernels: shape (groups, out, in, *spatial).
        budgets: parameters for one group.
        options: the sizes of bonds, of which the largest counts.
    """
    modes = tuple(kernels.shape[1:])
    bought = [ring_within(modes, budget, max(options.bonds)) for budget in sorted(budgets)]
    rings = list(dict.fromkeys(rank for rank in bought if rank is not None))
    rings.sort(key=lambda rank: tr_parameters(modes, rank))
    lost = _solved(kernels, rings, options) if min(modes[:2]) < _NARROW else _foreseen(kernels, rings)
    promised = list(zip(rings, lost, strict=True))
    promised += [((1, *rank), one) for rank, one in tt_curve(kernels, budgets)]
    points: list[Point] = []
    for rank, one in sorted(promised, key=lambda point: (tr_parameters(modes, point[0]), point[1])):
        if not points or one < points[-1][1]:
            points.append((rank, one))
    return points


def _foreseen(kernels: Tensor, rings: Sequence[Rank]) -> list[float]:
    """The squared relative errors of rings, from CP's of as many parameters."""
    if not rings:
        return []
    modes, joint = tuple(kernels.shape[1:]), kernels.flatten(3)
    budgets = np.array([tr_parameters(modes, rank) for rank in rings])
    curve = cp_curve(joint, budgets.tolist()) or [((1,), 1.0)]
    costs = [rank[0] * sum(joint.shape[1:]) for rank, _ in curve]
    errors = np.interp(budgets, costs, [lost**0.5 for _, lost in curve])
    errors = errors * (1 + _OVER_CP * (budgets / math.prod(modes)) ** 2)
    return [float(error) ** 2 for error in errors.clip(max=1.0)]


def _solved(kernels: Tensor, rings: Sequence[Rank], options: TROptions) -> list[float]:
    """The squared relative errors of rings by growing budget, between those that are solved for."""
    modes, some = tuple(kernels.shape[1:]), _some(kernels)
    energy = float(some.double().square().sum())
    if not rings or energy == 0:
        return [0.0] * len(rings)
    quick = replace(options, max_iter=min(_SWEEPS, options.max_iter))
    places = np.unique(np.linspace(0, len(rings) - 1, _POINTS).round().astype(int))
    tiny = torch.finfo(torch.float64).tiny
    logs = [math.log(max(_lost(some, rings[place], quick) / energy, tiny)) for place in places]
    costs = [tr_parameters(modes, rank) for rank in rings]
    return np.exp(np.interp(costs, [costs[place] for place in places], logs)).tolist()


def _some(kernels: Tensor) -> Tensor:
    """A few groups from all over."""
    return kernels[:: max(1, len(kernels) // _GROUPS)]


def _lost(kernels: Tensor, rank: Rank, options: TROptions) -> float:
    """The squared error of the groups' rings."""
    solved = [tensor_ring(kernel.movedim(0, -1), rank, solver=options).solution.relative_error for kernel in kernels]
    energies = kernels.double().flatten(1).square().sum(1).tolist()
    return math.fsum(error**2 * energy for error, energy in zip(solved, energies, strict=True))


def _filled(sizes: Sequence[int], ends: tuple[int, int], budget: int) -> Rank:
    """As many slices as fit between a first and a last bond, the bonds between being as large as either; maybe none."""
    first, last = ends
    limits = tensor_ring_limits(sizes)
    bonds = (first, *(min(max(ends), limit) for limit in limits[2:-1]), last)
    middle = zip(bonds[:-1], sizes[1:-1], bonds[1:], strict=True)
    room = budget - sum(before * size * after for before, size, after in middle)
    slices = room // (first * sizes[0] + last * sizes[-1])
    return (min(slices, limits[0], first * sizes[0], last * sizes[-1]), *bonds)


def _useful(modes: Sequence[int], rank: Rank, budget: int) -> bool:
    """Whether a rank fits, every bond can be filled by its neighbours, and one slice is not exact already."""
    sizes = chain_of(modes)
    limits, around = tensor_ring_limits(sizes), (*rank[1:], rank[0])
    filled = (b <= size * a and a <= size * b for b, size, a in zip(rank, sizes, around, strict=True))
    within = all(r <= limit for r, limit in zip(rank, limits, strict=True))
    needed = rank[0] == 1 or rank[1:] != limits[1:]
    return within and needed and all(filled) and tr_parameters(modes, rank) <= budget
