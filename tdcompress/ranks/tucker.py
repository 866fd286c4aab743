"""Tucker: parameters, the best truncation of the HOSVD under a budget, in closed form, and its curve of error."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tdcompress.decompositions import TuckerOptions, bridge, tucker_limits
from tdcompress.decompositions.algebra import leading_subspace, mode_dot, unfold, working
from tdcompress.decompositions.tucker import kept_by_hooi
from tdcompress.ranks.budget import grown, kept_share, points_at
from tdcompress.shapes import Point, Rank
from tdcompress.threads import threads_by_kernel


def tucker_parameters(modes: Sequence[int], rank: Sequence[int]) -> int:
    """Parameters of a Tucker decomposition with whole spatial modes, `rank` = (out, in).

    >>> tucker_parameters((64, 64, 3, 3), (14, 14))
    3556
    """
    return modes[0] * rank[0] + modes[1] * rank[1] + rank[0] * rank[1] * math.prod(modes[2:])


@threads_by_kernel
def tucker_ranks(kernels: Tensor, budget: int, options: TuckerOptions) -> list[Rank]:
    """The ranks (out, in) within `budget` that promise to lose least; none if none fits.

    For every out-rank only the largest in-rank that fits can be best. They are compared by what the truncated
    HOSVD keeps: the energy of each leading block of the full core is a cumulative sum. What comes after the HOSVD
    may prefer a neighbour, so the best few, taken at growing distance from the first, are compared by what HOOI
    keeps of the core.

    Args:
        kernels: shape (groups, out, in, *spatial).
        budget: parameters for one group.
        options: how many candidates are compared, and by how many sweeps.
    """
    modes = tuple(kernels.shape[1:])
    spatial = math.prod(modes[2:])
    limits = tucker_limits(modes, (0, 1))
    cores = [hosvd_core(kernel) for kernel in kernels]
    energy = core_energies(cores)
    out, inner, kept = _blocks(energy, modes, limits, budget)
    if math.isinf(float(kept.max())):
        return []

    def useful(rank: Rank) -> bool:
        return (
            all(r <= limit for r, limit in zip(rank, limits, strict=True))
            and rank[0] <= rank[1] * spatial
            and rank[1] <= rank[0] * spatial
            and tucker_parameters(modes, rank) <= budget
        )

    best = int(kept.argmax())
    count = options.candidates if options.max_iter else 1
    places = [place for place in _around(best, count, spacing=max(1, best // 12)) if 0 <= place < len(out)]
    ranks = [grown((int(out[place]), int(inner[place])), useful) for place in places if kept[place].isfinite()]
    if len(ranks) == 1:
        return ranks
    return [max(ranks, key=lambda rank: sum(kept_by_hooi(core, rank, options) for core in cores))]


def tucker_rule(kernel_shape: Sequence[int], ratio: float) -> Rank:
    """The rank that tensorly-torch would take for `ratio`: the paper's rule, proportional to the shape.

    Args:
        kernel_shape: (out, in / groups, *kernel_size), spatial sizes of 1 included.
        ratio: the share of the parameters to remove. The rule rounds, so it may keep a little more than asked.

    Returns:
        (out, in), with the spatial modes whole.

    Raises:
        CompressionError: `ratio` is no number in (0, 1).

    >>> tucker_rule((64, 64, 3, 3), 0.9)
    (14, 14)
    """
    kept_share(ratio)  # for its check of the ratio
    return bridge.tucker_rank(kernel_shape, 1 - ratio)


@threads_by_kernel
def tucker_curve(kernels: Tensor, budgets: Sequence[int]) -> list[Point]:
    """Exact for the truncated HOSVD: the energy outside a block of its core. `kernels`: (groups, out, in, *spatial)."""
    modes = tuple(kernels.shape[1:])
    energy = core_energies([hosvd_core(kernel) for kernel in kernels])
    total = float(energy[-1, -1]) or 1.0

    def at(budget: int) -> list[Point]:
        best = best_block(energy, modes, tucker_limits(modes, (0, 1)), budget)
        return [] if best is None else [(best, 1 - float(energy[best[0] - 1, best[1] - 1]) / total)]

    return points_at(budgets, at)


def best_block(energy: Tensor, modes: Sequence[int], limits: Rank, budget: int) -> Rank | None:
    """The leading block of the HOSVD core, as a rank within `budget`, that has most of its energy; None if none fits.

    Args:
        energy: of all leading blocks, from `core_energies`.
        modes: (out, in, *spatial).
        limits: the largest ranks.
        budget: parameters for one group.
    """
    out, inner, kept = _blocks(energy, modes, limits, budget)
    best = int(kept.argmax())
    return None if math.isinf(float(kept[best])) else (int(out[best]), int(inner[best]))


def _blocks(energy: Tensor, modes: Sequence[int], limits: Rank, budget: int) -> tuple[Tensor, Tensor, Tensor]:
    """For every out-rank the largest in-rank that fits, and the energy of that block; −∞ where none fits."""
    spatial = math.prod(modes[2:])
    out = torch.arange(1, limits[0] + 1, device="cpu")
    inner = (budget - modes[0] * out) // (modes[1] + out * spatial)
    inner = inner.clamp(max=limits[1]).minimum(out * spatial)
    possible = (inner >= 1) & (out <= inner * spatial)
    return out, inner, torch.where(possible, energy[out - 1, inner.clamp(min=1) - 1], -math.inf)


def _around(centre: int, count: int, spacing: int) -> list[int]:
    """`centre` and its neighbours to both sides, nearest first."""
    return [centre + (1 if step % 2 else -1) * spacing * ((step + 1) // 2) for step in range(count)]


def core_energies(cores: Sequence[Tensor]) -> Tensor:  # one (≤ out, ≤ in, *spatial) a group -> (≤ out, ≤ in)
    """Summed over the groups, [i, j]: the squared norm of the HOSVD core's leading (i + 1) × (j + 1) block."""
    squares = [core.flatten(2).square().sum(-1, dtype=torch.float64) if core.ndim > 2 else core**2 for core in cores]
    return torch.stack(squares).sum(0).cumsum(0).cumsum(1).cpu()


def hosvd_core(kernel: Tensor) -> Tensor:
    """The kernel, (out, in, *spatial), in the singular bases of its two channel modes."""
    core = working(kernel)
    for mode in (0, 1):
        matrix = unfold(kernel, mode)
        core = mode_dot(core, leading_subspace(matrix, min(matrix.shape)).mT.to(core), mode)
    return core
