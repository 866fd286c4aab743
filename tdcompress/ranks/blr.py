"""The grid and the rank of blocks under a budget: read off the spectra of the blocks of all grids."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tdcompress.decompositions.blr import blr_limit, monarch_reshape
from tdcompress.decompositions.reshape import Reshape, as_reshape
from tdcompress.decompositions.reshaped_options import Shapes
from tdcompress.ranks.reshaped import ReshapedRank, Spectra, grids
from tdcompress.ranks.sketches import SketchedSpectra, promising
from tdcompress.threads import threads_by_kernel


def blr_parameters(reshape: Reshape, rank: Sequence[int]) -> int:
    """Parameters of blocks of one rank, which is also how many multiply-adds a row of inputs takes.

    >>> blr_parameters(Reshape((4, 8), (2, 16)), (1,))
    192
    """
    rows, columns = reshape.shape
    return rank[0] * (rows * reshape.columns[0] + columns * reshape.rows[0])


def blr_shapes(shape: tuple[int, int], reshape: Shapes = "best") -> list[Reshape]:
    """The grids that `reshape` stands for.

    `"best"` are all grids of equal blocks, of neighbours or strided on either side, save the one of a single block,
    which is an SVD.

    >>> len(blr_shapes((4, 3)))
    6
    """
    if reshape == "balanced":
        return [monarch_reshape(*shape)]
    if reshape != "best":
        return [as_reshape(reshape, shape, 2)]
    shapes = grids(shape, strided=[(by_row, by_column) for by_row in (False, True) for by_column in (False, True)])
    # Where there is one block along a side, or one row or column in a block, strides make no difference.
    vain = {one for one in shapes if (one.strided_rows and 1 in one.rows) or (one.strided_columns and 1 in one.columns)}
    return [one for one in shapes if one not in vain]


@threads_by_kernel
def blr_candidates(
    kernels: Tensor, budgets: Sequence[int], reshape: Shapes = "best", *, count: int = 1
) -> list[list[ReshapedRank]]:
    """For every budget the best `count` grids, best first; empty where none fits. See `blr_curve`."""
    spectra, sketch = Spectra(kernels), SketchedSpectra(kernels)
    shapes = blr_shapes(spectra.shape, reshape)
    candidates = []
    for budget in budgets:
        ranks = {shape: min(budget // blr_parameters(shape, (1,)), blr_limit(shape)) for shape in shapes}
        worthwhile = promising(ranks, kernels, lambda shape, rank: float(sketch.blocks(shape)[rank]))
        choices = [ReshapedRank(float(spectra.blocks(shape)[rank]), (rank,), shape) for shape, rank in worthwhile]
        candidates.append(sorted(choices, key=lambda choice: choice.lost)[:count])
    return candidates


def blr_curve(kernels: Tensor, budgets: Sequence[int], reshape: Shapes = "best") -> list[ReshapedRank]:
    """For every budget the grid with its rank that loses least; exact, and none where none fits.

    Of large matrices only the most promising grids are compared, as in `kronecker_curve`.

    Args:
        kernels: shape (groups, rows, columns).
        budgets: parameters for one group.
        reshape: `"best"` for all grids, `"balanced"` for Monarch's, or a grid; see `blr_shapes`.

    Raises:
        CompressionError: the reshape does not fit.

    >>> import torch
    >>> best = blr_curve(torch.block_diag(torch.ones(2, 3), torch.ones(2, 3))[None], [20])[0]
    >>> best.reshape.rows, best.reshape.columns, best.rank, round(best.lost, 6)
    ((1, 4), (2, 3), (1,), 0.0)
    """
    return [one for candidates in blr_candidates(kernels, budgets, reshape) for one in candidates]
