"""Block terms: 1×1 in, the kernel's size within small groups of channels, 1×1 out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tdcompress.decompositions import BTDecomposition, BTDOptions, btd, btd_limits
from tdcompress.decompositions.sweeping import quick_limits
from tdcompress.layers.base import FactorizedConv
from tdcompress.layers.spec import ConvSpec
from tdcompress.ranks import btd_best_ranks, btd_curve, btd_parameters
from tdcompress.shapes import Axes, Point, Rank


class BTDConv(FactorizedConv[BTDecomposition, BTDOptions]):
    """A convolution as blocks of channels that do not see each other; `rank` = (blocks, out, in) of a block.

    >>> layer = BTDConv.from_conv(torch.nn.Conv2d(16, 32, 3, padding=1), rank=(5, 2, 2))
    >>> [tuple(stage.weight.shape) for stage in layer]
    [(10, 16, 1, 1), (10, 2, 3, 3), (32, 10, 1, 1)]
    """

    method = "btd"
    options = BTDOptions

    @staticmethod
    def arrangements(kernel_axes: tuple[int, ...], options: BTDOptions) -> list[Axes]:
        """One stage for all axes."""
        return [(kernel_axes,)] if kernel_axes else [()]

    @staticmethod
    def deterministic(options: BTDOptions) -> bool:
        """Always: nothing is drawn."""
        return True

    @staticmethod
    def quick(options: BTDOptions) -> BTDOptions:
        """A few sweeps for the first size alone."""
        sweeps, work = quick_limits(options.max_iter, options.max_work)
        return replace(options, max_iter=sweeps, max_work=work, sizes=options.sizes[:1])

    @staticmethod
    def full_rank(modes: Sequence[int]) -> Rank:
        """The most blocks that are of use, and their largest sizes."""
        return btd_limits(modes)

    @staticmethod
    def parameters_at(modes: Sequence[int], rank: Rank) -> int:
        """Both factors and the core of every block."""
        return btd_parameters(modes, rank)

    @staticmethod
    def choose_ranks(kernels: Tensor, budget: int, options: BTDOptions) -> Sequence[Rank]:
        """As many blocks as fit, of the best size that the options name."""
        return btd_best_ranks(kernels, budget, options)

    @classmethod
    def curve(cls, kernels: Tensor, budgets: Sequence[int], options: BTDOptions) -> Sequence[Point]:
        """What blocks of size 1 lose."""
        return btd_curve(kernels, budgets)

    @staticmethod
    def solve(kernel: Tensor, rank: Rank, options: BTDOptions, generator: torch.Generator) -> BTDecomposition:
        """Alternating least squares over the blocks."""
        return btd(kernel, rank, solver=options)

    @staticmethod
    def stages(spec: ConvSpec, rank: Rank, axes: Axes) -> Mapping[str, ConvSpec]:
        """Pointwise, a group a block with the whole kernel size, pointwise."""
        blocks, out, inner = rank
        groups = spec.groups * blocks
        return {
            "input": spec.stage(spec.in_channels, groups * inner, spec.pointwise_axes, groups=spec.groups),
            "blocks": spec.stage(groups * inner, groups * out, spec.kernel_axes, groups=groups),
            "output": spec.stage(groups * out, spec.out_channels, (), groups=spec.groups),
        }

    @staticmethod
    def stage_weights(decomposition: BTDecomposition) -> Sequence[Tensor]:
        """In-factors, cores and out-factors, which share a block's size evenly."""
        left, right, cores = decomposition.left, decomposition.right, decomposition.cores
        return [right.mT.flatten(0, 1), cores.flatten(0, 1), left.transpose(0, 1).flatten(1)]
