"""Hierarchical Tucker: parameters, the best truncation of the hierarchical SVD under a budget, and its curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tdcompress.decompositions.algebra import leading_subspace, mode_dot, unfold
from tdcompress.decompositions.hierarchical import HTOptions, hierarchical_tucker_limits
from tdcompress.decompositions.options import TuckerOptions
from tdcompress.decompositions.tucker import kept_by_hooi
from tdcompress.ranks.budget import grown, points_at
from tdcompress.ranks.tucker import hosvd_core
from tdcompress.shapes import Point, Rank
from tdcompress.threads import threads_by_kernel


def ht_parameters(modes: Sequence[int], rank: Sequence[int]) -> int:
    """Parameters of the tree ((out, in), (spatial)), `rank` = (out, in, between the branches).

    >>> ht_parameters((64, 64, 3, 3), (17, 16, 5))
    3517
    """
    out, inner, between = rank
    return modes[0] * out + modes[1] * inner + out * inner * between + between * math.prod(modes[2:])


@threads_by_kernel
def ht_ranks(kernels: Tensor, budget: int, options: HTOptions) -> list[Rank]:
    """The ranks within `budget` that promise to lose least; none if none fits.

    For every out-rank and every rank between the branches only the largest in-rank that fits can be best. They are
    compared by what the truncated hierarchical SVD keeps: the energy of each leading block of the kernel in all its
    singular bases is a cumulative sum. The best pair, and the best with an out-rank some way to either side, are then
    compared by what sweeps keep.

    Args:
        kernels: shape (groups, out, in, *spatial).
        budget: parameters for one group.
        options: how many candidates are compared, and by how many sweeps.
    """
    table = _Table(kernels)
    lost_least = table.best_by_out(budget)
    if not lost_least:
        return []
    best = max(lost_least, key=lambda out: lost_least[out][0])
    spacing = max(1, best // 12)
    reach = options.candidates // 2
    steps = range(-reach, options.candidates - reach) if options.max_iter else [0]
    tried = [best + spacing * step for step in steps]
    grown_ranks = [grown(lost_least[out][1], table.useful(budget)) for out in tried if out in lost_least]
    ranks = list(dict.fromkeys(grown_ranks))
    if len(ranks) == 1:
        return ranks
    sweeps = TuckerOptions(options.max_iter, options.tol)
    return [max(ranks, key=lambda rank: sum(kept_by_hooi(core, rank, sweeps) for core in table.cores))]


@threads_by_kernel
def ht_curve(kernels: Tensor, budgets: Sequence[int]) -> list[Point]:
    """Exact for the truncated hierarchical SVD: the energy outside a block. `kernels`: (groups, out, in, *spatial)."""
    table = _Table(kernels)

    def at(budget: int) -> list[Point]:
        kept, rank = max(table.best_by_out(budget).values(), default=(0.0, None))
        return [] if rank is None else [(rank, max(0.0, table.total - kept) / (table.total or 1.0))]

    return points_at(budgets, at)


class _Table:
    """What every leading block of the kernels, in their singular bases, has of their energy.

    Args:
        kernels: shape (groups, out, in, *spatial).
    """

    def __init__(self, kernels: Tensor) -> None:
        kernels = kernels.reshape(*kernels.shape[:3], -1)
        self.modes = tuple(kernels.shape[1:])
        self.limits = hierarchical_tucker_limits(self.modes)
        self.cores = [_in_all_bases(kernel) for kernel in kernels]
        squares = torch.stack([core.double().square() for core in self.cores]).sum(0)
        self._energy = squares.cumsum(0).cumsum(1).cumsum(2).cpu()
        self.total = float(self._energy[-1, -1, -1])

    def best_by_out(self, budget: int) -> dict[int, tuple[float, Rank]]:
        """For every out-rank that fits, the most energy within the budget, and the rank that has it."""
        out = torch.arange(1, self.limits[0] + 1, device="cpu")[:, None]
        between = torch.arange(1, self.limits[2] + 1, device="cpu")[None]
        room = budget - self.modes[0] * out - self.modes[2] * between
        inner = room.div(self.modes[1] + out * between, rounding_mode="floor")
        inner = inner.clamp(max=self.limits[1]).minimum(out * between)
        possible = (inner >= 1) & (out <= inner * between) & (between <= out * inner)
        kept = self._energy[out - 1, inner.clamp(min=1) - 1, between - 1]
        most, place = torch.where(possible, kept, -math.inf).max(1)
        return {
            row + 1: (float(most[row]), (row + 1, int(inner[row, place[row]]), int(place[row]) + 1))
            for row in most.isfinite().nonzero().flatten().tolist()
        }

    def useful(self, budget: int) -> Callable[[Rank], bool]:
        """Whether a rank fits, and every entry can be filled by the others."""

        def fits(rank: Rank) -> bool:
            out, inner, between = rank
            filled = out <= inner * between and inner <= out * between and between <= out * inner
            within = all(r <= limit for r, limit in zip(rank, self.limits, strict=True))
            return filled and within and ht_parameters(self.modes, rank) <= budget

        return fits


def _in_all_bases(kernel: Tensor) -> Tensor:
    """The kernel, (out, in, positions), in the singular bases of all three modes."""
    core, matrix = hosvd_core(kernel), unfold(kernel, 2)
    return mode_dot(core, leading_subspace(matrix, min(matrix.shape)).mT.to(core), 2)
