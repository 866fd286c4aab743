"""What the decompositions of a reshaped matrix share: shapes, and the spectra that tell what they lose at a rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tdcompress.decompositions.algebra import squared_norm, squared_singular_values
from tdcompress.decompositions.randomized import truncating_subspace
from tdcompress.decompositions.reshape import Reshape, divisors
from tdcompress.shapes import Rank

_WHOLE = 2048  # rows of an unfolding up to which all its singular values are computed


@dataclass(frozen=True, order=True)
class ReshapedRank:
    """A way to decompose a matrix.

    Attributes:
        lost: the share of its squared norm that is lost, or a bound on it.
        rank: the rank or ranks.
        reshape: how the matrix is read.
    """

    lost: float
    rank: Rank
    reshape: Reshape


class Spectra:
    """What each unfolding of a matrix that is read as a grid of two cores loses at every rank; each computed once.

    Args:
        kernels: shape (groups, rows, columns); the groups share a rank.

    >>> spectra = Spectra(torch.eye(4)[None])
    >>> spectra.unfolding(Reshape((4, 1), (1, 4))).tolist(), spectra.unfolding(Reshape((2, 2), (2, 2))).tolist()
    ([1.0, 0.75, 0.5, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0])
    """

    def __init__(self, kernels: Tensor) -> None:
        self.kernels = kernels.detach()
        self.shape = (kernels.shape[1], kernels.shape[2])
        self._unfoldings: dict[Reshape, np.ndarray] = {}
        self._blocks: dict[Reshape, np.ndarray] = {}

    def unfolding(self, reshape: Reshape) -> np.ndarray:
        """[r]: the share that is lost if r singular values are kept of the first core's axes against the second's."""
        split = as_split(reshape)
        if split not in self._unfoldings:
            self._unfoldings[split] = spectrum_tail(split, self.kernels)
        return self._unfoldings[split]

    def unfolding_at(self, reshape: Reshape, rank: int) -> float:
        """`unfolding(reshape)[rank]`; of very large unfoldings that one only, within 0.1 % of the error."""
        split = as_split(reshape)
        if split in self._unfoldings or self.is_quick(split):
            return float(self.unfolding(split)[rank])
        matrices = _unfolded(split, self.kernels)
        matrices = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
        kept = sum(squared_norm(truncating_subspace(one, rank).to(one).mT @ one) for one in matrices)
        return max(0.0, 1 - kept / (squared_norm(self.kernels) or 1.0))

    def is_quick(self, reshape: Reshape) -> bool:
        """Whether all singular values of the unfolding are computed where one rank is asked for."""
        return min(reshape.sizes) <= _WHOLE

    def blocks(self, reshape: Reshape) -> np.ndarray:
        """[r]: the share that is lost if r singular values are kept of each block; the first core counts the blocks."""
        if reshape not in self._blocks:
            self._blocks[reshape] = _tail(squared_singular_values(reshape.to_tensor(self.kernels)).flatten(0, 2))
        return self._blocks[reshape]


def spectrum_tail(split: Reshape, kernels: Tensor) -> np.ndarray:
    """[r]: the share that is lost if r singular values of the unfolding are kept.

    Args:
        split: a reshape into two cores.
        kernels: shape (groups, rows, columns).
    """
    return _tail(squared_singular_values(_unfolded(split, kernels)))


def _unfolded(split: Reshape, kernels: Tensor) -> Tensor:  # (groups, rows, columns) -> (groups, *split.sizes)
    return split.to_tensor(kernels).flatten(3, 4).flatten(1, 2)


def _tail(squares: Tensor) -> np.ndarray:  # (matrices, smaller side) -> (smaller side + 1,)
    sums = squares.sum(0, dtype=torch.float64)
    lost = torch.cat([sums.flip(0).cumsum(0).flip(0), sums.new_zeros(1)])
    return (lost / (lost[0] if lost[0] > 0 else 1.0)).cpu().numpy()


def grids(shape: tuple[int, int], *, strided: Sequence[tuple[bool, bool]]) -> list[Reshape]:
    """All reshapes into two cores, neither of them a mere number, for every choice of what is strided.

    Args:
        shape: rows and columns.
        strided: pairs of whether the rows and whether the columns are.
    """
    rows, columns = shape
    return [
        Reshape((out, rows // out), (inner, columns // inner), *sides)
        for sides in strided
        for out in divisors(rows)
        for inner in divisors(columns)
        if 1 < out * inner < rows * columns
    ]


def as_split(reshape: Reshape) -> Reshape:
    """Of the reshapes into two cores that have the same unfolding, or its transpose, the one that is computed.

    Turning both sides over exchanges the cores, so the rows need never be strided. Where one core has all of a side, it
    makes no difference how that side is counted.
    """
    rows, columns, by_row, by_column = reshape.rows, reshape.columns, reshape.strided_rows, reshape.strided_columns
    if 1 in rows:
        by_row = by_column
    if 1 in columns:
        by_column = by_row
    return (
        Reshape(rows[::-1], columns[::-1], False, not by_column) if by_row else Reshape(rows, columns, False, by_column)
    )


def is_svd(reshape: Reshape) -> bool:
    """Whether one of two cores has all the rows and the other one all the columns."""
    (rows, columns), (out, inner) = reshape.shape, (reshape.rows[0], reshape.columns[0])
    return (out, inner) in {(rows, 1), (1, columns)}
