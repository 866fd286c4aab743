"""Tensor ring: 1×1 in, a tensor train's spatial stages over every slice alike, 1×1 out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import permutations
from operator import mul

import torch
from torch import Tensor

from tdcompress.decompositions import TRDecomposition, TROptions, tensor_ring, tensor_ring_limits
from tdcompress.decompositions.chain_forms import TRForm, TTForm
from tdcompress.decompositions.forms import Form
from tdcompress.decompositions.sweeping import quick_limits
from tdcompress.layers.base import FactorizedConv
from tdcompress.layers.eager import convolved
from tdcompress.layers.exchange import check_shape
from tdcompress.layers.reshapes import Regrouping
from tdcompress.layers.spec import ConvSpec, stage_name
from tdcompress.layers.trains import as_convolutions, spatial_cores, train_shape, without_pointwise
from tdcompress.layers.whitening import Whitening
from tdcompress.ranks import tr_curve, tr_parameters, tr_ranks, train_ranks
from tdcompress.ranks.train_chain import chain_of
from tdcompress.shapes import Axes, Point, Rank


class TRConv(FactorizedConv[TRDecomposition, TROptions]):
    """A convolution as a ring over (in, *spatial, out); `rank` = (slices, the channels of one between the stages).

    All slices go through the same spatial stages: they are folded into the samples there, and unfolded again
    (`Regroup`). With one slice nothing is folded, and it is a tensor train.

    >>> layer = TRConv.from_conv(torch.nn.Conv2d(16, 32, 3, padding=1), rank=(3, 4, 5, 4))
    >>> [tuple(stage.weight.shape) for stage in layer.weighted]
    [(12, 16, 1, 1), (5, 4, 3, 1), (4, 5, 1, 3), (32, 12, 1, 1)]
    >>> layer(torch.zeros(2, 16, 8, 8)).shape
    torch.Size([2, 32, 8, 8])
    """

    method = "tr"
    options = TROptions

    @staticmethod
    def arrangements(kernel_axes: tuple[int, ...], options: TROptions) -> list[Axes]:
        """Every order of the spatial axes, as for the tensor train."""
        orders = [kernel_axes] if options.orders == "given" else permutations(kernel_axes)
        return [tuple((axis,) for axis in order) for order in orders]

    @classmethod
    def ways_to_try(cls, spec: ConvSpec, axes: Axes | None, options: TROptions) -> Sequence[Axes]:
        """The one that was given; none for a ratio, for which `proposals` tells rings and trains apart."""
        return [] if axes is None else super().ways_to_try(spec, axes, options)

    @classmethod
    def proposals(
        cls, spec: ConvSpec, weight: Tensor, whitening: Whitening | None, budget: int, options: TROptions
    ) -> Sequence[tuple[Axes, Rank]]:
        """The ring in the first order of the axes, which hardly matters for it, and the train in all of them."""
        first, *others = cls.ways(spec, options)
        found = [(first, rank) for rank in tr_ranks(cls.seen(weight, spec, first, None), budget, options)]
        return found + [
            (axes, rank) for axes in others for rank in train_ranks(cls.seen(weight, spec, axes, None), budget)
        ]

    @classmethod
    def points(
        cls,
        spec: ConvSpec,
        weight: Tensor,
        whitening: Whitening | None,
        budgets: Callable[[int], Sequence[int]],
        options: TROptions,
    ) -> Iterator[tuple[Axes, Rank, float]]:
        """Of the first order of the axes alone."""
        yield from super().points(spec, weight, whitening, budgets, replace(options, orders="given"))

    @staticmethod
    def deterministic(options: TROptions) -> bool:
        """Unless a start is random."""
        return "random" not in options.starts

    @staticmethod
    def quick(options: TROptions) -> TROptions:
        """A few sweeps from the first start, for the last size of bonds alone."""
        sweeps, work = quick_limits(options.max_iter, options.max_work)
        return replace(options, max_iter=sweeps, max_work=work, starts=options.starts[:1], bonds=options.bonds[-1:])

    @staticmethod
    def full_rank(modes: Sequence[int]) -> Rank:
        """As many slices as are of use, and the bonds of an exact tensor train."""
        return tensor_ring_limits(chain_of(modes))

    @staticmethod
    def parameters_at(modes: Sequence[int], rank: Rank) -> int:
        """The sum of the cores."""
        return tr_parameters(modes, rank)

    @staticmethod
    def choose_ranks(kernels: Tensor, budget: int, options: TROptions) -> Sequence[Rank]:
        """The ring that promises to lose least, and the train that does."""
        return tr_ranks(kernels, budget, options)

    @classmethod
    def curve(cls, kernels: Tensor, budgets: Sequence[int], options: TROptions) -> Sequence[Point]:
        """What the ring is foreseen to lose, or the bound on the train."""
        return tr_curve(kernels, budgets, options)

    @staticmethod
    def solve(kernel: Tensor, rank: Rank, options: TROptions, generator: torch.Generator) -> TRDecomposition:
        """Alternating least squares over (in, *spatial, out)."""
        return tensor_ring(kernel.movedim(0, -1), rank, solver=options, generator=generator)

    @staticmethod
    def stages(spec: ConvSpec, rank: Rank, axes: Axes) -> Mapping[str, ConvSpec | Regrouping]:
        """Pointwise, one dense convolution along every axis in turn on slices folded into the samples, pointwise."""
        slices, *bonds = rank
        groups, spatial = spec.groups, len(spec.kernel_size)
        first, last = groups * slices * bonds[0], groups * slices * bonds[-1]
        stages: dict[str, ConvSpec | Regrouping] = {
            "input": spec.stage(spec.in_channels, first, spec.pointwise_axes, groups=groups)
        }
        if slices > 1:
            stages["fold"] = Regrouping((groups, slices, bonds[0]), (1, 0, 2), leave=1, spatial=spatial)
        for group, before, after in zip(axes, bonds[:-1], bonds[1:], strict=True):
            stages[stage_name(group)] = spec.stage(groups * before, groups * after, group, groups=groups)
        if slices > 1:
            stages["unfold"] = Regrouping((slices, groups, bonds[-1]), (1, 0, 2), arrive=1, spatial=spatial)
        stages["output"] = spec.stage(last, spec.out_channels, (), groups=groups)
        return stages

    @staticmethod
    def stage_weights(decomposition: TRDecomposition) -> Sequence[Tensor]:
        """Every core with its outputs first, as a convolution's weight has them."""
        return as_convolutions(decomposition.cores)

    def middle_weight(self) -> Tensor | None:
        """The product of the spatial cores, which all slices share."""
        slices, *bonds = self.ranks
        cores, groups = [stage.weight for stage in self.weighted[1:-1]], self.spec.groups
        apart = sum(core.numel() for core in cores) // groups
        if slices < 2 or not self._is_worth_merging(bonds[0] * bonds[-1] * math.prod(self.spec.kernel_size), apart):
            return None
        every = [core.unflatten(0, (groups, -1)) for core in cores]
        return reduce(lambda chain, core: (core.unsqueeze(3) * chain.unsqueeze(1)).sum(2), every).flatten(0, 1)

    def _middle(self, values: Tensor, weight: Tensor) -> Tensor:
        """One dense convolution of all slices, or a grouped one with a slice a group where that cannot be.

        Where the channels of an image lie together, so do the slices at a place: read as that many places of the last
        axis, they meet only themselves if the dilation is as many times as large.
        """
        slices, groups = self.ranks[0], self.spec.groups
        part = self.spec.stage(weight.shape[1], len(weight), self.spec.kernel_axes, groups=1)
        if groups > 1 or not _is_along_places(part, values.shape[-1]):
            grouped = weight.reshape(groups, 1, -1, *weight.shape[1:]).expand(-1, slices, *[-1] * weight.ndim)
            return super()._middle(values, grouped.flatten(0, 2))
        count, _, *size, width = values.shape
        places = values.movedim(1, -1).reshape(count, *size, width * slices, -1).movedim(-1, 1)
        factors = [1] * len(size) + [slices]
        padding = part.padding if isinstance(part.padding, str) else tuple(map(mul, part.padding, factors))
        dilated = replace(part, padding=padding, dilation=tuple(map(mul, part.dilation, factors)))
        found = convolved(places, weight, dilated).movedim(1, -1)
        return found.reshape(*found.shape[:-2], found.shape[-2] // slices, -1).movedim(-1, 1)

    # --- as a TRTensor ------------------------------------------------------------------------------------

    @classmethod
    def forms(cls, spec: ConvSpec) -> tuple[type[Form], ...]:
        """A `TRTensor` of a convolution's kernel."""
        return () if spec.is_matrix else (TRForm,)

    def form(self, kernels: Sequence[Tensor]) -> TRForm:
        """A core a stage, and the identity along axes of size 1."""
        first, *spatial, last = kernels
        slices, *bonds = self.ranks
        cores = spatial_cores(self.spec, self.axes, spatial, bonds[0], like=last)
        opening = first.reshape(slices, bonds[0], -1).transpose(1, 2)
        return TRForm((opening, *cores, last.reshape(-1, slices, bonds[-1]).permute(2, 0, 1)))

    @classmethod
    def of_form(cls, form: Form, spec: ConvSpec, axes: Axes) -> tuple[Rank, Sequence[Tensor]]:
        """A stage a core; those along axes of size 1 go into the one before. A train is a ring of one slice."""
        if not isinstance(form, TRForm | TTForm):
            return super().of_form(form, spec, axes)
        check_shape(form, train_shape(spec, axes), "(in, *spatial, out)")
        ring = TRForm(without_pointwise(form.cores, spec, axes)).feasible().cores
        return tuple(core.shape[0] for core in ring), as_convolutions(ring)


def _is_along_places(part: ConvSpec, width: int) -> bool:
    """Whether a convolution of the last axis is one of its places, too, and `width` is enough for it.

    A stride would skip slices, half of an odd padding cannot lie on both sides, and PyTorch's message on an image that
    is too small must give its size.
    """
    span = part.dilation[-1] * (part.kernel_size[-1] - 1)
    if part.padding == "same":
        return span % 2 == 0
    padding = 0 if isinstance(part.padding, str) else part.padding[-1]
    return part.stride[-1] == 1 and width + 2 * padding > span
