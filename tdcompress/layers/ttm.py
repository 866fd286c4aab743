"""Tensor-train matrix: a chain of stages, each of which multiplies along its own axis of the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tdcompress.decompositions import Reshape, TTMDecomposition, TTMOptions, ttm, ttm_limits
from tdcompress.decompositions.chain_forms import TTMForm
from tdcompress.decompositions.forms import Form
from tdcompress.layers.chained import ChainedConv
from tdcompress.layers.grid import over_columns, reshape_of
from tdcompress.layers.spec import ConvSpec
from tdcompress.ranks import ReshapedRank, ttm_parameters
from tdcompress.ranks.reshaped import Spectra
from tdcompress.ranks.ttm import ttm_bound, ttm_candidates, ttm_least
from tdcompress.shapes import Rank


class TTMConv(ChainedConv):
    """A linear layer or a 1×1 convolution as a chain of cores over a grid of its inputs and one of its outputs.

    `rank` = the inner ranks. The stages go from the last core to the first, or the other way round if that takes fewer
    multiply-adds.

    >>> layer = TTMConv.from_conv(torch.nn.Linear(24, 60), rank=(3, 4))
    >>> [tuple(stage.weight.shape) for stage in layer.weighted], layer.axes
    ([(20, 4), (12, 12), (3, 6)], ((3, 4, 5), (2, 3, 4), (0, 0)))
    >>> layer(torch.zeros(2, 24)).shape
    torch.Size([2, 60])
    """

    method = "ttm"
    options = TTMOptions
    cores, most_cores, solved_for = 3, 4, 3

    @staticmethod
    def full_rank(modes: Sequence[int]) -> Rank:
        """One entry a bond: the smaller side of that unfolding."""
        return ttm_limits(reshape_of(modes))

    @classmethod
    def nearest_feasible(cls, modes: Sequence[int], rank: Rank) -> Rank:
        """Cut to the limits, and along the chain to what the bond before can fill."""
        cut, left = [], 1
        for wanted, limit, size in zip(rank, cls.full_rank(modes), reshape_of(modes).sizes, strict=False):
            left = min(wanted, limit, left * size)
            cut.append(left)
        return tuple(cut)

    @staticmethod
    def parameters_at(modes: Sequence[int], rank: Rank) -> int:
        """The sum of the cores."""
        return ttm_parameters(reshape_of(modes), rank)

    @staticmethod
    def best_shapes(
        matrices: Tensor, budgets: Sequence[int], options: TTMOptions, count: int = 1
    ) -> list[list[ReshapedRank]]:
        """By a bound on what TT-SVD loses."""
        return ttm_candidates(matrices, budgets, options.reshape, cores=options.cores, count=count)

    @staticmethod
    def least_parameters(shape: tuple[int, int], options: TTMOptions) -> int | None:
        """The sum of the cores."""
        return ttm_least(shape, options.reshape, options.cores)

    @staticmethod
    def foreseen(spectra: Spectra, reshape: Reshape, rank: Rank) -> float:
        """The bound of the unfoldings' tails."""
        return ttm_bound(spectra, reshape, rank)

    @staticmethod
    def solve(kernel: Tensor, rank: Rank, options: TTMOptions, generator: torch.Generator) -> TTMDecomposition:
        """TT-SVD, refined by alternating least squares."""
        shape = reshape_of(kernel.shape)
        return ttm(shape.to_matrix(kernel), rank, shape, solver=options)

    @staticmethod
    def unwhitened(decomposition: TTMDecomposition, roots: Sequence[Tensor]) -> TTMDecomposition:
        """A root taken out of each core."""
        pairs = zip(decomposition.cores, roots, strict=True)
        return replace(decomposition, cores=tuple(over_columns(core, root, 2) for core, root in pairs))

    @staticmethod
    def cores_of(decomposition: TTMDecomposition) -> Sequence[Tensor]:
        """As they are."""
        return decomposition.cores

    @classmethod
    def forms(cls, spec: ConvSpec) -> tuple[type[Form], ...]:
        """A `TTMatrix` of a matrix."""
        return (TTMForm,) if cls.takes(spec) else ()
