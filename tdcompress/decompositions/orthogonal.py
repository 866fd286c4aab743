"""Mutually orthogonal rank-one terms in closed form: where CP's sweeps begin, and what its curve refers to."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from tdcompress.decompositions.algebra import eigh, gram, leading_subspace, mode_dot, unfold, unravelled, working


class OrthogonalTerms:
    """The singular triples of all slices of a tensor whose small modes were rotated onto their principal axes.

    They are mutually orthogonal, so none cancels another, and the largest `rank` of them have as their squared error
    the sum of the squares of the others, at every rank. There are as many as the full rank.

    Args:
        tensor: of order ≥ 3 with its modes in order of size, the largest first.

    >>> terms = OrthogonalTerms(torch.ones(4, 3, 2))
    >>> [tuple(rows.shape) for rows in terms.rows(2)], [round(float(lost), 6) for lost in terms.lost[:2]]
    ([(2, 4), (2, 3), (2, 2)], [24.0, 0.0])
    """

    def __init__(self, tensor: Tensor) -> None:
        self._shape, self._like = tensor.shape, tensor
        self._rotations = [leading_subspace(unfold(tensor, mode), size) for mode, size in self._small()]
        rotated = working(tensor)
        for mode, rotation in enumerate(self._rotations, start=2):
            rotated = mode_dot(rotated, rotation.mT.to(rotated), mode)
        slices = rotated.flatten(2).movedim(-1, 0)  # (positions, first, second)
        _, self._right = eigh(gram(slices.mT))  # the second mode is the smaller one
        self._left = slices @ self._right.to(slices)
        self._values = torch.linalg.vector_norm(self._left, dim=1, dtype=torch.float64)

    def _small(self) -> list[tuple[int, int]]:
        return list(enumerate(self._shape))[2:]

    @cached_property
    def lost(self) -> Tensor:
        """The squared error at every rank from 0 to the full one, not relative, in float64."""
        squares = self._values.flatten().square().sort().values
        return torch.cat([squares.new_zeros(1), squares.cumsum(0)]).flip(0)

    def rows(self, rank: int) -> list[Tensor]:
        """The largest terms as factors (rank, size), in the tensor's type, as long in every mode."""
        largest, index = self._values.flatten().topk(rank)
        position, column = index // self._values.shape[1], index % self._values.shape[1]
        places = unravelled(position, self._shape[2:])
        unit = self._left[position, :, column] / largest.clamp(min=torch.finfo(largest.dtype).tiny)[:, None]
        axes = [rotation.mT[i] for rotation, i in zip(self._rotations, places, strict=True)]
        share = largest[:, None] ** (1 / len(self._shape))
        return [(row * share).to(self._like) for row in (unit, self._right[position, :, column], *axes)]
