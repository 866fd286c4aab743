"""Block terms: parameters, the most blocks of every size within a budget, and the curve of error."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from tdcompress.decompositions.btd import BTDOptions, btd_limits
from tdcompress.ranks.budget import grown
from tdcompress.ranks.cp import cp_curve
from tdcompress.shapes import Point, Rank


def btd_parameters(modes: Sequence[int], rank: Sequence[int]) -> int:
    """Parameters of a sum of blocks with whole spatial modes, `rank` = (blocks, out, in).

    >>> btd_parameters((64, 64, 3, 3), (27, 1, 1)), btd_parameters((64, 64, 3, 3), (12, 2, 2))
    (3699, 3504)
    """
    blocks, out, inner = rank
    return blocks * (modes[0] * out + modes[1] * inner + out * inner * math.prod(modes[2:]))


def btd_ranks(modes: Sequence[int], budget: int, options: BTDOptions) -> list[Rank]:
    """For every size of blocks as many as fit within `budget` parameters, then wider ones; none if none fits.

    Which size loses least is known only when they are solved for. On trained kernels it is mostly 1, and the others
    are within a few percent.

    Args:
        modes: (out, in, *spatial).
        budget: parameters for one group.
        options: the sizes; one beyond what a mode can fill is cut to that.

    >>> btd_ranks((64, 64, 3, 3), 3686, BTDOptions())
    [(26, 1, 1), (12, 2, 2), (5, 4, 4)]
    """
    limits, spatial = btd_limits(modes), math.prod(modes[2:])

    def useful(rank: Rank) -> bool:
        blocks, out, inner = rank
        filled = out <= inner * spatial and inner <= out * spatial and (blocks - 1) * min(out, inner) < limits[0]
        within = all(r <= limit for r, limit in zip(rank, limits, strict=True))
        return filled and within and btd_parameters(modes, rank) <= budget

    ranks = []
    for size in options.sizes:
        block = (min(size, limits[1]), min(size, limits[2]))
        most = math.ceil(limits[0] / min(block))  # blocks of size s hold s rank-one terms at the least
        blocks = min(budget // btd_parameters(modes, (1, *block)), most)
        ranks += [grown((blocks, *block), useful)] if blocks else []
    return list(dict.fromkeys(ranks))


def btd_curve(kernels: Tensor, budgets: Sequence[int]) -> list[Point]:
    """About what blocks of size 1 lose: CP with the spatial modes taken together, whose curve this is.

    Args:
        kernels: shape (groups, out, in, *spatial).
        budgets: parameters for one group.
    """
    joint = kernels.flatten(3) if kernels.ndim > 4 else kernels
    return [((*rank, 1, 1), lost) for rank, lost in cp_curve(joint, budgets)]
