"""CP: 1×1 in, a depthwise convolution along each spatial axis, 1×1 out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tdcompress.decompositions import CPDecomposition, cp, cp_limit
from tdcompress.layers.base import FactorizedConv
from tdcompress.layers.spec import ConvSpec
from tdcompress.ranks import Rank, cp_parameters, cp_rank


class CPConv(FactorizedConv):
    """A convolution whose kernel is a sum of `rank` separable ones (Lebedev et al. 2015).

    >>> layer = CPConv.from_conv(torch.nn.Conv2d(16, 32, 3, padding=1), rank=5)
    >>> [tuple(stage.weight.shape) for stage in layer]
    [(5, 16, 1, 1), (5, 1, 3, 1), (5, 1, 1, 3), (32, 5, 1, 1)]
    """

    method = "cp"

    @staticmethod
    def full_rank(modes: Sequence[int]) -> Rank:
        """One entry: the product of all modes but the largest."""
        return (cp_limit(modes),)

    @staticmethod
    def parameters_at(modes: Sequence[int], rank: Rank) -> int:
        """`rank` times the sum of the modes."""
        return cp_parameters(modes, rank)

    @staticmethod
    def choose_rank(kernels: Tensor, budget: int) -> Rank:
        """The largest rank that fits."""
        (rank,) = cp_rank(kernels.shape[1:], budget)
        return (min(rank, cp_limit(kernels.shape[1:])),)

    @staticmethod
    def solve(kernel: Tensor, rank: Rank, solver: str | None, generator: torch.Generator) -> CPDecomposition:
        """Alternating least squares."""
        return cp(kernel, rank[0], solver=solver, generator=generator)

    @staticmethod
    def stages(spec: ConvSpec, rank: Rank) -> Mapping[str, ConvSpec]:
        """Pointwise, depthwise along every axis longer than 1, pointwise."""
        channels = spec.groups * rank[0]
        stages = {"input": spec.stage(spec.in_channels, channels, spec.short_axes, groups=spec.groups)}
        for axis in spec.long_axes:
            stages[f"axis{axis}"] = spec.stage(channels, channels, (axis,), groups=channels)
        stages["output"] = spec.stage(channels, spec.out_channels, (), groups=spec.groups)
        return stages

    @staticmethod
    def stage_weights(decomposition: CPDecomposition) -> Sequence[Tensor]:
        """The factors of (in, *spatial, out), each stage carrying the same share of the size."""
        out, inner, *spatial = decomposition.balanced_factors()
        return [inner.mT, *(factor.mT for factor in spatial), out]
