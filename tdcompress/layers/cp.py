"""CP: 1×1 in, a depthwise convolution along each spatial axis, 1×1 out."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from tdcompress.decompositions import CPDecomposition, CPOptions, cp, cp_limit
from tdcompress.decompositions.algebra import relative_error
from tdcompress.decompositions.forms import CPForm, Form
from tdcompress.decompositions.sweeping import quick_limits
from tdcompress.errors import CompressionError
from tdcompress.layers.base import FactorizedConv
from tdcompress.layers.exchange import check_shape
from tdcompress.layers.parameters import parameter
from tdcompress.layers.spec import ConvSpec, stage_name
from tdcompress.ranks import cp_curve, cp_parameters, cp_ranks, cp_rule
from tdcompress.shapes import Axes, Point, Rank

_TRIAL_SWEEPS = 10  # that tell the better arrangement; below three times as many both are solved for at once
# What the singular vectors of a product of three kernels lose in double precision: at most 47 times its resolution in
# 40 000 random draws.
_ROUNDING = 100 * torch.finfo(torch.float64).eps


class CPConv(FactorizedConv[CPDecomposition, CPOptions]):
    """A convolution whose kernel is a sum of `rank` separable ones (Lebedev et al. 2015).

    >>> layer = CPConv.from_conv(torch.nn.Conv2d(16, 32, 3, padding=1), rank=5)
    >>> [tuple(stage.weight.shape) for stage in layer]
    [(5, 16, 1, 1), (5, 1, 3, 1), (5, 1, 1, 3), (32, 5, 1, 1)]
    """

    method = "cp"
    options = CPOptions
    planned_by_default = True

    @property
    def rank(self) -> int:
        """The number of separable terms."""
        return self.ranks[0]

    @staticmethod
    def arrangements(kernel_axes: tuple[int, ...], options: CPOptions) -> list[Axes]:
        """A stage for every axis, one for all of them, or both, as `CPOptions.spatial` says."""
        separable: Axes = tuple((axis,) for axis in kernel_axes)
        joint: Axes = (kernel_axes,) if kernel_axes else ()
        ways = {"separable": [separable], "joint": [joint], "best": [separable, joint]}
        return list(dict.fromkeys(ways[options.spatial]))

    @staticmethod
    def deterministic(options: CPOptions) -> bool:
        """Unless a start is random, as tensorly's always is."""
        return options.backend == "own" and "random" not in options.starts

    @staticmethod
    def trial(options: CPOptions) -> CPOptions | None:
        """A few sweeps."""
        if options.backend == "tensorly" or options.max_iter < 3 * _TRIAL_SWEEPS:
            return None
        return replace(options, max_iter=_TRIAL_SWEEPS)

    @staticmethod
    def quick(options: CPOptions) -> CPOptions:
        """Fewer sweeps than by default, and less work."""
        if options.backend == "tensorly":
            return options
        sweeps, work = quick_limits(options.max_iter, options.max_work)
        return replace(options, max_iter=sweeps, max_work=work)

    @staticmethod
    def full_rank(modes: Sequence[int]) -> Rank:
        """One entry: the product of all modes but the largest."""
        return (cp_limit(modes),)

    @classmethod
    def tensorly_torch_rank(cls, kernel_shape: Sequence[int], ratio: float) -> Rank:
        """In proportion to the parameters of a rank."""
        return cp_rule(kernel_shape, ratio)

    @staticmethod
    def parameters_at(modes: Sequence[int], rank: Rank) -> int:
        """`rank` times the sum of the modes."""
        return cp_parameters(modes, rank)

    @staticmethod
    def choose_ranks(kernels: Tensor, budget: int, options: CPOptions) -> Sequence[Rank]:
        """The largest rank that fits."""
        return cp_ranks(kernels.shape[1:], budget)

    @classmethod
    def curve(cls, kernels: Tensor, budgets: Sequence[int], options: CPOptions) -> Sequence[Point]:
        """What orthogonal terms lose, times what sweeps make of it at a few ranks."""
        return cp_curve(kernels, budgets)

    @staticmethod
    def solve(kernel: Tensor, rank: Rank, options: CPOptions, generator: torch.Generator) -> CPDecomposition:
        """Alternating least squares."""
        return cp(kernel, rank[0], solver=options, generator=generator)

    @staticmethod
    def stages(spec: ConvSpec, rank: Rank, axes: Axes) -> Mapping[str, ConvSpec]:
        """Pointwise, depthwise along the axes, pointwise."""
        channels = spec.groups * rank[0]
        stages = {"input": spec.stage(spec.in_channels, channels, spec.pointwise_axes, groups=spec.groups)}
        for group in axes:
            stages[stage_name(group)] = spec.stage(channels, channels, group, groups=channels)
        stages["output"] = spec.stage(channels, spec.out_channels, (), groups=spec.groups)
        return stages

    @staticmethod
    def stage_weights(decomposition: CPDecomposition) -> Sequence[Tensor]:
        """The factors of (in, *spatial, out), each stage carrying the same share of the size."""
        out, inner, *spatial = decomposition.balanced_factors()
        return [inner.mT, *(factor.mT for factor in spatial), out]

    def middle_weight(self) -> Tensor | None:
        """The product of the depthwise kernels, as `merge_spatial` has it."""
        weights = [stage.weight for stage in self.weighted[1:-1]]
        sizes = [math.prod(weight.shape[2:]) for weight in weights]
        if len(weights) < 2 or not self._is_worth_merging(math.prod(sizes), sum(sizes)):
            return None
        return self._merged()

    def _merged(self) -> Tensor:
        """The product of the depthwise kernels, each along its own axes: one kernel over all."""
        return reduce(torch.mul, [stage.weight for stage in self.weighted[1:-1]])

    # --- as a CPTensor ------------------------------------------------------------------------------------

    @classmethod
    def forms(cls, spec: ConvSpec) -> tuple[type[Form], ...]:
        """A `CPTensor` of a convolution's kernel."""
        return () if spec.is_matrix else (CPForm,)

    def form(self, kernels: Sequence[Tensor]) -> CPForm:
        """One factor a mode: of (out, in, *kernel_size), or of what `axes` makes one mode of."""
        terms, spec = self.ranks[0], self.spec
        out, (inner, *spatial) = kernels[-1].reshape(-1, terms), [one.reshape(terms, -1).mT for one in kernels[:-1]]
        if all(len(group) == 1 for group in self.axes):
            by_axis = {axis: factor for (axis,), factor in zip(self.axes, spatial, strict=True)}
            spatial = [by_axis.get(axis, out.new_ones(1, terms)) for axis in range(len(spec.kernel_size))]
        return CPForm(out.new_ones(terms), (out, inner, *spatial))

    @classmethod
    def of_form(cls, form: Form, spec: ConvSpec, axes: Axes) -> tuple[Rank, Sequence[Tensor]]:
        """A stage a factor; those along axes of size 1 go into the first."""
        if not isinstance(form, CPForm):
            return super().of_form(form, spec, axes)
        separable = all(len(group) == 1 for group in axes)
        check_shape(form, spec.kernel_shape if separable else spec.modes(axes), "(out, in, *spatial)")
        out, inner, *spatial = form.without_weights()
        if separable:
            inner = reduce(torch.mul, [spatial[axis] for axis in spec.pointwise_axes], inner)
            spatial = [spatial[axis] for (axis,) in axes]
        return (out.shape[1],), [inner.mT, *(factor.mT for factor in spatial), out]

    # --- one spatial stage for all axes, and back -------------------------------------------------------

    def merge_spatial(self) -> CPConv:
        """The same layer with one depthwise stage instead of one an axis, which may run faster.

        Exact, up to rounding, whatever the stride, padding and padding mode. It has more parameters, and `axes` and
        `ratio` say so. This layer is not touched; the new one has its own copy of the weights.

        Raises:
            CompressionError: at this rank the merged stack would be larger than the dense convolution.

        >>> layer = CPConv.from_conv(torch.nn.Conv2d(16, 32, 3), rank=5).merge_spatial()
        >>> [tuple(stage.weight.shape) for stage in layer], layer.axes
        ([(5, 16, 1, 1), (5, 1, 3, 3), (32, 5, 1, 1)], ((0, 1),))
        """
        if len(self.axes) < 2:
            return copy.deepcopy(self)
        joint = (self.spec.kernel_axes,)
        (limit,) = self.full_rank(self.spec.modes(joint))
        if self.ranks[0] > limit:
            raise CompressionError(
                f"at rank {self.ranks[0]} the merged stack would be larger than the dense convolution, which is what "
                f"to_conv() gives; merging is possible up to rank {limit}."
            )
        return self._rearranged(joint, [self._merged()])

    def split_spatial(self, *, nearest: bool = False) -> CPConv:
        """The same layer with a depthwise stage for every axis: the way back from `merge_spatial`.

        Exact, up to rounding, for a layer that was merged. If it was trained since, or solved as
        `CPOptions(spatial="joint")`, its spatial stage need not be a product any more. This layer is not touched.

        Args:
            nearest: take the nearest product then (Eckart & Young 1936; with three axes, axis by axis). How far the
                new layer is from what `solution` spoke of is not known, so that is None.

        Raises:
            CompressionError: the spatial stage is no product, and the nearest one was not asked for.

        >>> layer = CPConv.from_conv(torch.nn.Conv2d(16, 32, 3), rank=5)
        >>> layer.merge_spatial().split_spatial().axes
        ((0,), (1,))
        """
        weights = [stage.weight.detach() for stage in self[1:-1]]
        profiles = [_profiles(weight, group) for weight, group in zip(weights, self.axes, strict=True)]
        errors = [relative_error(weight, reduce(torch.mul, one)) for weight, one in zip(weights, profiles, strict=True)]
        worst = max(errors, default=0.0)
        exact = worst <= 4 * torch.finfo(self[0].weight.dtype).eps + _ROUNDING
        if not exact and not nearest:
            raise CompressionError(
                f"the spatial stage is no product of one kernel an axis; the nearest is {worst:.2g} away, in relative "
                "terms. Pass nearest=True to take it, or keep the layer merged."
            )
        axes = tuple((axis,) for group in self.axes for axis in group)
        layer = self._rearranged(axes, [profile for one in profiles for profile in one])
        layer.solution = self.solution if exact else None
        return layer

    def _rearranged(self, axes: Axes, spatial: Sequence[Tensor]) -> CPConv:
        """A copy with these spatial stages between the first and the last one."""
        layer = type(self)(self.spec, self.ranks, axes, device="meta")
        before, weights = list(self), [self[0].weight, *spatial, self[-1].weight]
        before[1:-1] = [before[1]] * len(spatial)
        for stage, old, weight in zip(layer, before, weights, strict=True):
            stage.weight = parameter(weight.detach().clone(), like=old.weight)
        if self.bias is not None:
            layer[-1].bias = parameter(self.bias.detach().clone(), like=self.bias)
        layer.solution, layer.ratio_asked = self.solution, self.ratio_asked
        return layer.train(self.training)


def _profiles(joint: Tensor, axes: Sequence[int]) -> list[Tensor]:
    """For every channel of (channels, 1, *kernel) one kernel an axis; the product of two is the nearest there is."""
    rest, profiles = joint.double(), []
    for axis in axes[:-1]:
        moved = rest.movedim(2 + axis, 1)
        left, values, right = torch.linalg.svd(moved.flatten(2), full_matrices=False)
        share = values[:, :1, None].sqrt()
        shape = [-1, 1, *(size if i == axis else 1 for i, size in enumerate(joint.shape[2:]))]
        profiles.append((left[..., :1] * share).reshape(shape))
        rest = (share * right[:, :1]).reshape(len(rest), 1, *moved.shape[2:]).movedim(1, 2 + axis)
    return [*(profile.to(joint) for profile in profiles), rest.to(joint)]
