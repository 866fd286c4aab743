"""Block terms: parameters, the most blocks of every size within a budget, the best size, and the curve of error."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tdcompress.decompositions.algebra import power_of_two
from tdcompress.decompositions.block_sweeps import BlockSweep, orthogonal_blocks
from tdcompress.decompositions.btd import BTDOptions, btd_limits
from tdcompress.decompositions.extrapolation import Run
from tdcompress.ranks.cp import cp_curve
from tdcompress.shapes import Point, Rank
from tdcompress.threads import threads_by_kernel

_SWEEPS = (20, 60)  # of a trial: after the first number hopeless sizes are dropped, after the second one is taken
_HOPELESS = 0.02  # of the least error: what a size loses more after the first sweeps it does not make good
_GROUPS = 4  # of a convolution that are swept for, at even distances


def btd_parameters(modes: Sequence[int], rank: Sequence[int]) -> int:
    """Parameters of a sum of blocks with whole spatial modes, `rank` = (blocks, out, in).

    >>> btd_parameters((64, 64, 3, 3), (27, 1, 1)), btd_parameters((64, 64, 3, 3), (12, 2, 2))
    (3699, 3504)
    """
    blocks, out, inner = rank
    return blocks * (modes[0] * out + modes[1] * inner + out * inner * math.prod(modes[2:]))


def btd_ranks(modes: Sequence[int], budget: int, options: BTDOptions) -> list[Rank]:
    """For every size of blocks as many as fit within `budget` parameters; none if none fits.

    The sizes are kept to, even where wider blocks would fit: groups of 17 channels take far longer than groups of 16.
    Which size loses least is known only when they are swept for, see `btd_best_ranks`.

    Args:
        modes: (out, in, *spatial).
        budget: parameters for one group.
        options: the sizes; one beyond what a mode can fill is cut to that.

    >>> btd_ranks((64, 64, 3, 3), 3686, BTDOptions())
    [(26, 1, 1), (2, 8, 8)]
    """
    limits = btd_limits(modes)
    ranks = []
    for size in options.sizes:
        block = (min(size, limits[1]), min(size, limits[2]))
        most = math.ceil(limits[0] / min(block))  # blocks of size s hold s rank-one terms at the least
        blocks = min(budget // btd_parameters(modes, (1, *block)), most)
        ranks += [(blocks, *block)] if blocks else []
    return list(dict.fromkeys(ranks))


@threads_by_kernel
def btd_best_ranks(kernels: Tensor, budget: int, options: BTDOptions) -> list[Rank]:
    """The one of `btd_ranks` that loses least after some sweeps, or with larger blocks little more; none if none fits.

    All sizes are swept for a little, those that are near the best a little longer.

    Args:
        kernels: shape (groups, out, in, *spatial).
        budget: parameters for one group.
        options: the sizes, and `size_tol`.

    >>> btd_best_ranks(torch.ones(1, 16, 12, 3, 3), 400, BTDOptions())
    [(10, 1, 1)]
    """
    ranks = btd_ranks(tuple(kernels.shape[1:]), budget, options)
    filled = [kernel for kernel in kernels if kernel.any()]
    if len(ranks) < 2 or not filled or not options.max_iter:
        return ranks[:1]
    places = sorted({len(filled) * i // _GROUPS for i in range(_GROUPS)})
    trials = [_Trial([filled[place] for place in places], rank, options) for rank in ranks]
    for sweeps, tol in zip(_SWEEPS, (options.size_tol + _HOPELESS, options.size_tol), strict=True):
        errors = [trial.error_after(sweeps) for trial in trials]
        most = (1 + tol) * min(errors)
        trials = [trial for trial, error in zip(trials, errors, strict=True) if error <= most]
    return [max((trial.rank for trial in trials), key=lambda rank: rank[1] * rank[2])]


class _Trial:
    """Sweeps of some groups' kernels (out, in, *spatial) at a rank, which go on when asked for."""

    def __init__(self, kernels: Sequence[Tensor], rank: Rank, options: BTDOptions) -> None:
        self.rank = rank
        self._most = options.sweeps_of(kernels[0].shape, rank)
        self._runs, self._energies = [], []
        for kernel in kernels:
            tensor = kernel.flatten(2).to(torch.promote_types(kernel.dtype, torch.float32))
            tensor = tensor / power_of_two(tensor)
            self._runs.append(Run(BlockSweep(tensor, options.penalty), orthogonal_blocks(tensor, rank)))
            self._energies.append(float(kernel.double().square().sum()))

    def error_after(self, sweeps: int) -> float:
        """The error of all kernels together after so many sweeps, or as many as the options allow."""
        lost = 0.0
        for run, energy in zip(self._runs, self._energies, strict=True):
            run.advance(min(sweeps, self._most) - run.sweeps, 0.0)
            lost += energy * float(run.error) ** 2
        return math.sqrt(lost)


def btd_curve(kernels: Tensor, budgets: Sequence[int]) -> list[Point]:
    """About what blocks of size 1 lose: CP with the spatial modes taken together, whose curve this is.

    Args:
        kernels: shape (groups, out, in, *spatial).
        budgets: parameters for one group.
    """
    joint = kernels.flatten(3) if kernels.ndim > 4 else kernels
    return [((*rank, 1, 1), lost) for rank, lost in cp_curve(joint, budgets)]
