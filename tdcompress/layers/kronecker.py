"""Kronecker: a matrix as a sum of Kronecker products, which multiplies one axis of the inputs after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tdcompress.decompositions import KroneckerDecomposition, KroneckerOptions, Reshape, kronecker
from tdcompress.decompositions.kronecker import kronecker_limit
from tdcompress.layers.chained import ChainedConv
from tdcompress.layers.grid import over_columns, reshape_of
from tdcompress.ranks import ReshapedRank, kronecker_candidates, kronecker_parameters, kronecker_shapes
from tdcompress.ranks.reshaped import Spectra
from tdcompress.shapes import Rank


class KroneckerConv(ChainedConv):
    """A linear layer or a 1×1 convolution as Σ_r A_r ⊗ B_r; `rank` = the number of terms.

    The inputs are read as a grid. One stage multiplies along one of its axes, with all B_r at once, the next one along
    the other, and sums over the terms; which comes first is what takes fewer multiply-adds.

    >>> layer = KroneckerConv.from_conv(torch.nn.Linear(24, 40), rank=3)
    >>> [tuple(stage.weight.shape) for stage in layer.weighted], layer.axes
    ([(24, 6), (5, 12)], ((5, 8), (4, 6), (0, 0)))
    >>> layer(torch.zeros(2, 24)).shape
    torch.Size([2, 40])
    """

    method = "kronecker"
    options = KroneckerOptions

    @property
    def rank(self) -> int:
        """The number of terms."""
        return self.ranks[0]

    @staticmethod
    def full_rank(modes: Sequence[int]) -> Rank:
        """One entry: the entries of the smaller factor."""
        return (kronecker_limit(reshape_of(modes)),)

    @staticmethod
    def parameters_at(modes: Sequence[int], rank: Rank) -> int:
        """`rank` times both factors."""
        return kronecker_parameters(reshape_of(modes), rank)

    @staticmethod
    def best_shapes(
        matrices: Tensor, budgets: Sequence[int], options: KroneckerOptions, count: int = 1
    ) -> list[list[ReshapedRank]]:
        """Their loss is exact."""
        return kronecker_candidates(matrices, budgets, options.reshape, count=count)

    @staticmethod
    def least_parameters(shape: tuple[int, int], options: KroneckerOptions) -> int | None:
        """Both factors of one term."""
        return min((sum(one.sizes) for one in kronecker_shapes(shape, options.reshape)), default=None)

    @staticmethod
    def foreseen(spectra: Spectra, reshape: Reshape, rank: Rank) -> float:
        """The tail of the singular values of the rearranged matrix."""
        return spectra.unfolding_at(reshape, rank[0])

    @staticmethod
    def solve(
        kernel: Tensor, rank: Rank, options: KroneckerOptions, generator: torch.Generator
    ) -> KroneckerDecomposition:
        """The best sum there is."""
        shape = reshape_of(kernel.shape)
        return kronecker(shape.to_matrix(kernel), rank[0], shape, solver=options)

    @staticmethod
    def unwhitened(decomposition: KroneckerDecomposition, roots: Sequence[Tensor]) -> KroneckerDecomposition:
        """A root taken out of each factor."""
        left, right = (
            over_columns(factor, root, 2)
            for factor, root in zip((decomposition.left, decomposition.right), roots, strict=True)
        )
        return replace(decomposition, left=left, right=right)

    @staticmethod
    def cores_of(decomposition: KroneckerDecomposition) -> Sequence[Tensor]:
        """Two, with the terms between them."""
        return decomposition.left.movedim(0, -1)[None], decomposition.right[..., None]
