"""CP: 1×1 in, a depthwise convolution along each spatial axis, 1×1 out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tdcompress.decompositions import CPDecomposition, CPOptions, Solver, cp, cp_limit
from tdcompress.decompositions.options import resolve
from tdcompress.layers.base import FactorizedConv
from tdcompress.layers.spec import Axes, ConvSpec, stage_name
from tdcompress.ranks import Rank, cp_parameters, cp_ranks


class CPConv(FactorizedConv):
    """A convolution whose kernel is a sum of `rank` separable ones (Lebedev et al. 2015).

    >>> layer = CPConv.from_conv(torch.nn.Conv2d(16, 32, 3, padding=1), rank=5)
    >>> [tuple(stage.weight.shape) for stage in layer]
    [(5, 16, 1, 1), (5, 1, 3, 1), (5, 1, 1, 3), (32, 5, 1, 1)]
    """

    method = "cp"

    @property
    def rank(self) -> int:
        """The number of separable terms."""
        return self.ranks[0]

    @staticmethod
    def arrangements(long_axes: tuple[int, ...], solver: Solver) -> list[Axes]:
        """A stage for every axis, or with `CPOptions(spatial="joint")` one for all of them."""
        options = resolve(solver, CPOptions)
        if options is not None and options.spatial == "joint" and long_axes:
            return [(long_axes,)]
        return [tuple((axis,) for axis in long_axes)]

    @staticmethod
    def deterministic(solver: Solver) -> bool:
        """Unless a start is random, as tensorly's always is."""
        options = resolve(solver, CPOptions)
        return options is not None and "random" not in options.starts

    @staticmethod
    def full_rank(modes: Sequence[int]) -> Rank:
        """One entry: the product of all modes but the largest."""
        return (cp_limit(modes),)

    @staticmethod
    def parameters_at(modes: Sequence[int], rank: Rank) -> int:
        """`rank` times the sum of the modes."""
        return cp_parameters(modes, rank)

    @staticmethod
    def choose_ranks(kernels: Tensor, budget: int, solver: Solver) -> Sequence[Rank]:
        """The largest rank that fits."""
        return cp_ranks(kernels.shape[1:], budget)

    @staticmethod
    def solve(kernel: Tensor, rank: Rank, solver: Solver, generator: torch.Generator) -> CPDecomposition:
        """Alternating least squares."""
        return cp(kernel, rank[0], solver=solver, generator=generator)

    @staticmethod
    def stages(spec: ConvSpec, rank: Rank, axes: Axes) -> Mapping[str, ConvSpec]:
        """Pointwise, depthwise along the axes, pointwise."""
        channels = spec.groups * rank[0]
        stages = {"input": spec.stage(spec.in_channels, channels, spec.short_axes, groups=spec.groups)}
        for group in axes:
            stages[stage_name(group)] = spec.stage(channels, channels, group, groups=channels)
        stages["output"] = spec.stage(channels, spec.out_channels, (), groups=spec.groups)
        return stages

    @staticmethod
    def stage_weights(decomposition: CPDecomposition) -> Sequence[Tensor]:
        """The factors of (in, *spatial, out), each stage carrying the same share of the size."""
        out, inner, *spatial = decomposition.balanced_factors()
        return [inner.mT, *(factor.mT for factor in spatial), out]
