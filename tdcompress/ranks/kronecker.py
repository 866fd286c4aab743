"""The shape and the number of terms of a sum of Kronecker products under a budget: read off all shapes' spectra."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tdcompress.decompositions.kronecker import kronecker_limit
from tdcompress.decompositions.reshape import Reshape, as_reshape
from tdcompress.decompositions.reshaped_options import Shapes
from tdcompress.ranks.reshaped import ReshapedRank, Spectra, as_split, grids, is_svd
from tdcompress.ranks.sketches import SketchedSpectra, promising
from tdcompress.threads import threads_by_kernel


def kronecker_parameters(reshape: Reshape, rank: Sequence[int]) -> int:
    """Parameters of a sum of `rank` Kronecker products.

    >>> kronecker_parameters(Reshape((16, 16), (8, 32)), (3,))
    1920
    """
    return rank[0] * sum(reshape.sizes)


def kronecker_multiply_adds(reshape: Reshape, rank: Sequence[int]) -> int:
    """Multiply-adds of one row of inputs: the second factor first, or the first if that is cheaper.

    >>> kronecker_multiply_adds(Reshape((16, 16), (8, 32)), (3,)), 256 * 256
    (18432, 65536)
    """
    (out, last), (inner, fast) = reshape.rows, reshape.columns
    return rank[0] * min(inner * last * (fast + out), fast * out * (inner + last))


def kronecker_shapes(shape: tuple[int, int], reshape: Shapes = "best") -> list[Reshape]:
    """The shapes that `reshape` stands for.

    `"best"` are all pairs of factors of either side, with the columns' first factor slow or fast: what is left to
    choose of the order, since turning both sides over exchanges the two factors. A row times a column is left out:
    a sum of those is an SVD.

    >>> len(kronecker_shapes((16, 9))), kronecker_shapes((7, 5))
    (14, [])
    """
    if reshape != "best":
        return [as_reshape(reshape, shape, 2)]
    shapes = map(as_split, grids(shape, strided=[(False, False), (False, True)]))
    return [split for split in dict.fromkeys(shapes) if not is_svd(split)]


@threads_by_kernel
def kronecker_candidates(
    kernels: Tensor, budgets: Sequence[int], reshape: Shapes = "best", *, count: int = 1
) -> list[list[ReshapedRank]]:
    """For every budget the best `count` shapes, best first; empty where none fits. See `kronecker_curve`."""
    spectra, sketch = Spectra(kernels), SketchedSpectra(kernels)
    shapes = kronecker_shapes(spectra.shape, reshape)
    candidates = []
    for budget in budgets:
        ranks = {shape: min(budget // sum(shape.sizes), kronecker_limit(shape)) for shape in shapes}
        worthwhile = promising(ranks, kernels, lambda shape, rank: float(sketch.unfolding(shape)[rank]))
        choices = [ReshapedRank(spectra.unfolding_at(shape, rank), (rank,), shape) for shape, rank in worthwhile]
        candidates.append(sorted(choices, key=lambda choice: choice.lost)[:count])
    return candidates


def kronecker_curve(kernels: Tensor, budgets: Sequence[int], reshape: Shapes = "best") -> list[ReshapedRank]:
    """For every budget the shape with its number of terms that loses least; exact, and none where none fits.

    Of matrices with more than 2¹⁹ entries the 16 shapes that estimates find best are compared, of still larger ones
    fewer; see `tdcompress.ranks.sketches`.

    Args:
        kernels: shape (groups, rows, columns).
        budgets: parameters for one group.
        reshape: `"best"` for all shapes, `"balanced"`, or a shape; see `kronecker_shapes`.

    Raises:
        CompressionError: the reshape does not fit.

    >>> import torch
    >>> blocks = torch.kron(torch.ones(2, 4), torch.eye(3))
    >>> best = kronecker_curve(blocks[None], [30])[0]
    >>> best.reshape, best.rank, round(best.lost, 6)
    (Reshape(rows=(2, 3), columns=(4, 3), strided_rows=False, strided_columns=False), (1,), 0.0)
    """
    return [one for candidates in kronecker_candidates(kernels, budgets, reshape) for one in candidates]
