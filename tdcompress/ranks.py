"""Shape + budget -> ranks, and what a rank costs in parameters.

A kernel's modes are (out, in, *spatial): in is in_channels / groups, and spatial sizes of 1 are left out,
because no stage of a factorized convolution is spent on them. Kernels come as (groups, *modes): the groups
of one convolution share a rank, and what one rank costs is counted for one group.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from numbers import Real

import torch
from torch import Tensor

from tdcompress.decompositions.algebra import leading_subspace, mode_dot, squared_singular_values, unfold
from tdcompress.decompositions.bridge import rule
from tdcompress.errors import CompressionError

Rank = tuple[int, ...]

_GRID = 100  # points an axis when four or more bonds are searched together


def parameter_budget(numel: int, ratio: float) -> int:
    """The most parameters that a weight may keep.

    Args:
        numel: the parameters of the weight.
        ratio: the share to remove, in (0, 1).

    Raises:
        CompressionError: `ratio` is no number in (0, 1).

    >>> parameter_budget(36864, 0.9)
    3686
    """
    if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 0 < ratio < 1:
        raise CompressionError(
            f"ratio must be between 0 and 1, got {ratio!r}; it is the share of the parameters to remove, "
            "so ratio=0.9 keeps a tenth."
        )
    ratio = float(ratio)
    budget = math.floor((1 - ratio) * numel)
    # Rounding may have lifted the product onto a whole number: "never more" is meant to the last bit.
    return budget - 1 if budget / numel > 1 - ratio else budget


def tensorly_torch_rank(method: str, kernel_shape: Sequence[int], ratio: float) -> Rank:
    """The rank that tensorly-torch would take for `ratio`: the paper's rule, proportional to the shape.

    Args:
        method: `"cp"`, `"tucker"` or `"tt"`.
        kernel_shape: (out, in / groups, *kernel_size), spatial sizes of 1 included.
        ratio: the share of the parameters to remove. The rule rounds, so it may keep a little more than
            asked; for the tensor train it keeps far less.

    >>> tensorly_torch_rank("cp", (64, 64, 3, 3), 0.9), tensorly_torch_rank("tucker", (64, 64, 3, 3), 0.9)
    ((28,), (14, 14))
    """
    parameter_budget(math.prod(kernel_shape), ratio)  # for its check of the ratio
    return rule(method, kernel_shape, 1 - ratio)


def cp_parameters(modes: Sequence[int], rank: Sequence[int]) -> int:
    """Parameters of a CP decomposition: one vector a mode and term.

    >>> cp_parameters((64, 64, 3, 3), (28,))
    3752
    """
    return rank[0] * sum(modes)


def tucker_parameters(modes: Sequence[int], rank: Sequence[int]) -> int:
    """Parameters of a Tucker decomposition with whole spatial modes, `rank` = (out, in).

    >>> tucker_parameters((64, 64, 3, 3), (14, 14))
    3556
    """
    return modes[0] * rank[0] + modes[1] * rank[1] + rank[0] * rank[1] * math.prod(modes[2:])


def tt_parameters(modes: Sequence[int], rank: Sequence[int]) -> int:
    """Parameters of a tensor train over (in, *spatial, out), `rank` = the inner ranks.

    >>> tt_parameters((64, 64, 3, 3), (40, 4, 12))
    3952
    """
    sizes = (modes[1], *modes[2:], modes[0])
    return sum(left * size * right for left, size, right in zip((1, *rank), sizes, (*rank, 1), strict=True))


def cp_rank(modes: Sequence[int], budget: int) -> Rank:
    """The largest CP rank within `budget` parameters; (0,) if there is none.

    >>> cp_rank((64, 64, 3, 3), 3686)
    (27,)
    """
    return (budget // sum(modes),)


def tucker_rank(kernels: Tensor, budget: int) -> Rank:
    """The ranks (out, in) within `budget` whose truncated HOSVD keeps most; (0, 0) if there are none.

    Every pair is compared: the energy of each leading block of the full HOSVD core is a cumulative sum, and
    for every out-rank only the largest in-rank that fits can be best.

    Args:
        kernels: shape (groups, out, in, *spatial).
        budget: parameters for one group.
    """
    modes = tuple(kernels.shape[1:])
    spatial = math.prod(modes[2:])
    limits = (min(modes[0], modes[1] * spatial), min(modes[1], modes[0] * spatial))
    energy = torch.stack([_core_energy(kernel) for kernel in kernels]).sum(0).cpu()
    out = torch.arange(1, limits[0] + 1)
    inner = (budget - modes[0] * out) // (modes[1] + out * spatial)
    inner = inner.clamp(max=limits[1]).minimum(out * spatial)
    fits = (inner >= 1) & (out <= inner * spatial)
    if not fits.any():
        return (0, 0)
    kept = torch.where(fits, energy[out - 1, inner.clamp(min=1) - 1], -1.0)
    best = int(kept.argmax())

    def useful(rank: Rank) -> bool:
        return (
            all(r <= limit for r, limit in zip(rank, limits, strict=True))
            and rank[0] <= rank[1] * spatial
            and rank[1] <= rank[0] * spatial
            and tucker_parameters(modes, rank) <= budget
        )

    return _grown((int(out[best]), int(inner[best])), useful)


def _core_energy(kernel: Tensor) -> Tensor:
    """energy[i, j]: the squared norm of the HOSVD core's leading (i + 1) × (j + 1) block."""
    core = kernel.double()
    for mode in (0, 1):
        matrix = unfold(kernel, mode)
        core = mode_dot(core, leading_subspace(matrix, min(matrix.shape)).mT, mode)
    return core.square().reshape(*core.shape[:2], -1).sum(-1).cumsum(0).cumsum(1)


def tt_rank(kernels: Tensor, budget: int) -> Rank:
    """The inner ranks within `budget` with the least bound on the error; zeros if there are none.

    The bound is TT-SVD's own: the sum, over the unfoldings, of the squared singular values cut off.

    Args:
        kernels: shape (groups, out, in, *spatial).
        budget: parameters for one group.
    """
    modes = tuple(kernels.shape[1:])
    sizes = (modes[1], *modes[2:], modes[0])
    tails = _tt_tails(kernels.movedim(1, -1))

    def useful(rank: Rank) -> bool:
        padded = (1, *rank, 1)
        bounds = zip(padded[:-1], sizes, padded[1:], strict=True)
        return (
            all(1 <= r < len(tail) for r, tail in zip(rank, tails, strict=True))
            and all(left <= size * right and right <= size * left for left, size, right in bounds)
            and tt_parameters(modes, rank) <= budget
        )

    best = _cheapest_cut(sizes, tails, budget)
    return _grown(_exchanged(best, tails, useful), useful) if all(best) else best


def _tt_tails(kernels: Tensor) -> list[Tensor]:
    """For every bond, tail[r] = the energy lost in that unfolding when r singular values are kept."""
    tails = []
    for split in range(1, kernels.ndim - 1):
        matrices = [kernel.reshape(math.prod(kernel.shape[:split]), -1) for kernel in kernels]
        squares = torch.stack([squared_singular_values(matrix) for matrix in matrices]).sum(0)
        tails.append(torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)]).cpu())
    return tails


def _cheapest_cut(sizes: Sequence[int], tails: Sequence[Tensor], budget: int) -> Rank:
    """Try all ranks of every bond but the middle one, which then takes what is left of the budget."""
    middle = len(tails) // 2
    axes = [_points(len(tail) - 1, len(tails)) for bond, tail in enumerate(tails) if bond != middle]
    grid = list(torch.meshgrid(*axes, indexing="ij")) if axes else []
    one = torch.ones((), dtype=torch.int64)
    bonds = [one, *grid[:middle], one, *grid[middle:], one]  # the middle bond's place is held by a one
    here = middle + 1
    fixed = sum(
        (bonds[i] * size * bonds[i + 1] for i, size in enumerate(sizes) if here not in (i, i + 1)),
        torch.zeros((), dtype=torch.int64),
    )
    slope = bonds[here - 1] * sizes[here - 1] + sizes[here] * bonds[here + 1]
    most = torch.minimum(bonds[here - 1] * sizes[here - 1], bonds[here + 1] * sizes[here])
    bonds[here] = ((budget - fixed) // slope).minimum(most).clamp(max=len(tails[middle]) - 1)
    lost = sum((tail[r.clamp(min=0)] for tail, r in zip(tails, bonds[1:-1], strict=True)), torch.zeros(()))
    lost = torch.where(bonds[here] >= 1, lost, math.inf)
    for i, size in enumerate(sizes[1:-1], start=1):  # a rank that its neighbour cannot fill is waste
        feasible = (bonds[i] <= size * bonds[i + 1]) & (bonds[i + 1] <= size * bonds[i])
        lost = torch.where(feasible, lost, math.inf)
    best = int(lost.argmin())
    if math.isinf(float(lost.flatten()[best])):
        return tuple(0 for _ in tails)
    return tuple(int(r.expand(lost.shape).flatten()[best]) for r in bonds[1:-1])


def _points(limit: int, bonds: int) -> Tensor:
    if bonds <= 3 or limit <= _GRID:
        return torch.arange(1, limit + 1)
    return torch.linspace(1, limit, _GRID).round().long()


def _exchanged(rank: Rank, tails: Sequence[Tensor], useful: Callable[[Rank], bool]) -> Rank:
    """Move single ranks from one bond to another while the bound falls: polish for a coarse grid."""

    def lost(candidate: Rank) -> float:
        return sum(float(tail[r]) for tail, r in zip(tails, candidate, strict=True))

    improved = True
    while improved:
        improved = False
        for down, up in itertools.permutations(range(len(rank)), 2):
            moved = tuple(r - (bond == down) + (bond == up) for bond, r in enumerate(rank))
            if useful(moved) and lost(moved) < lost(rank):
                rank, improved = moved, True
    return rank


def _grown(rank: Rank, useful: Callable[[Rank], bool]) -> Rank:
    """Raise single ranks, lowest first, until no further step is useful."""
    while True:
        steps = [tuple(r + (i == j) for j, r in enumerate(rank)) for i in range(len(rank))]
        steps = [step for step in steps if useful(step)]
        if not steps:
            return rank
        rank = min(steps, key=max)
