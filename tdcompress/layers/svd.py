"""SVD: two convolutions with few channels between them, which share the spatial axes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from tdcompress.decompositions import SVDecomposition, SVDOptions, svd
from tdcompress.decompositions.form_parts import product_of_rank
from tdcompress.decompositions.forms import CPForm, Form, TuckerForm
from tdcompress.errors import CompressionError
from tdcompress.layers.base import FactorizedConv
from tdcompress.layers.exchange import check_shape
from tdcompress.layers.spec import ConvSpec
from tdcompress.ranks import svd_curve, svd_parameters, svd_ranks
from tdcompress.shapes import Axes, Point, Rank


class SVDConv(FactorizedConv[SVDecomposition, SVDOptions]):
    """A convolution or a linear layer through `rank` channels.

    The first stage works along some of the spatial axes, the second one along the rest. With all axes in the first
    stage the kernel is the matrix out × (in · height · width) (Zhang et al. 2016); with one in each, it is
    (in · height) × (width · out) (Jaderberg et al. 2014). `axes` has these two groups.

    >>> layer = SVDConv.from_conv(torch.nn.Conv2d(16, 32, 3, padding=1), rank=5)
    >>> [tuple(stage.weight.shape) for stage in layer]
    [(5, 16, 3, 3), (32, 5, 1, 1)]
    >>> split = SVDOptions(split="spatial")
    >>> layer = SVDConv.from_conv(torch.nn.Conv2d(16, 32, 3, padding=1), rank=5, solver=split)
    >>> [tuple(stage.weight.shape) for stage in layer], layer.axes
    ([(5, 16, 3, 1), (32, 5, 1, 3)], ((0,), (1,)))
    >>> SVDConv.from_conv(torch.nn.Linear(16, 32), rank=5)(torch.zeros(4, 16)).shape
    torch.Size([4, 32])
    """

    method = "svd"
    options = SVDOptions
    planned_by_default = True
    takes_linear = True

    @property
    def rank(self) -> int:
        """The channels between the two stages, of one group."""
        return self.ranks[0]

    @staticmethod
    def arrangements(kernel_axes: tuple[int, ...], options: SVDOptions) -> list[Axes]:
        """The axes of the first stage and those of the second: all in the first by default, and every other way."""
        if options.split == "spatial":
            return [(kernel_axes[:1], kernel_axes[1:])]
        count = len(kernel_axes)
        sizes = range(count, -1, -1) if options.split == "all" else [count]
        firsts = [first for size in sizes for first in combinations(kernel_axes, size)]
        return [(first, tuple(axis for axis in kernel_axes if axis not in first)) for first in firsts]

    @staticmethod
    def takes_whole_patches(axes: Axes) -> bool:
        """If no axis is left for the second stage."""
        return not axes[1]

    @staticmethod
    def deterministic(options: SVDOptions) -> bool:
        """Always: nothing is drawn."""
        return True

    @staticmethod
    def full_rank(modes: Sequence[int]) -> Rank:
        """One entry: the smaller side of the matrix."""
        out, inner, first, second = modes
        return (min(inner * first, second * out),)

    @staticmethod
    def parameters_at(modes: Sequence[int], rank: Rank) -> int:
        """`rank` times both sides of the matrix."""
        return svd_parameters(modes, rank)

    @staticmethod
    def choose_ranks(kernels: Tensor, budget: int, options: SVDOptions) -> Sequence[Rank]:
        """The largest rank that fits."""
        return svd_ranks(kernels.shape[1:], budget)

    @classmethod
    def curve(cls, kernels: Tensor, budgets: Sequence[int], options: SVDOptions) -> Sequence[Point]:
        """The tail of the singular values."""
        return svd_curve(kernels, budgets)

    @staticmethod
    def solve(kernel: Tensor, rank: Rank, options: SVDOptions, generator: torch.Generator) -> SVDecomposition:
        """The best approximation of (out · second) × (in · first)."""
        return svd(kernel, rank[0], rows=(0, 3), solver=options)

    @staticmethod
    def stages(spec: ConvSpec, rank: Rank, axes: Axes) -> Mapping[str, ConvSpec]:
        """A convolution along the first axes to the rank, and one along the others from it."""
        (first, second), channels = axes, spec.groups * rank[0]
        return {
            "input": spec.stage(spec.in_channels, channels, (*first, *spec.pointwise_axes), groups=spec.groups),
            "output": spec.stage(channels, spec.out_channels, second, groups=spec.groups),
        }

    @staticmethod
    def stage_weights(decomposition: SVDecomposition) -> Sequence[Tensor]:
        """Both sides with the roots of the singular values."""
        left, right = decomposition.balanced_factors()  # (out, second, rank), (in, first, rank)
        return [right.permute(2, 0, 1), left.permute(0, 2, 1)]

    # --- as a CPTensor or TuckerTensor --------------------------------------------------------------------

    @classmethod
    def forms(cls, spec: ConvSpec) -> tuple[type[Form], ...]:
        """A `CPTensor` or `TuckerTensor` of a matrix. That of a kernel is rather a layer of those methods."""
        return (CPForm, TuckerForm) if spec.is_matrix else ()

    def form(self, kernels: Sequence[Tensor]) -> Form:
        """Of a matrix a sum of products of vectors; of a kernel a core with one factor, for its outputs."""
        first, last = kernels
        if self.axes[1]:
            raise CompressionError(
                f"tensorly has no class for a kernel that is split between two stages, axes {self.axes}; "
                "SVDOptions(split='channel') makes one that is a TuckerTensor."
            )
        out = last.reshape(-1, self.ranks[0])
        if self.spec.is_matrix:
            return CPForm(out.new_ones(out.shape[1]), (out, first.reshape(out.shape[1], -1).mT))
        return TuckerForm.partial(first.reshape(out.shape[1], -1, *self.spec.kernel_size), (out,))

    @classmethod
    def of_form(cls, form: Form, spec: ConvSpec, axes: Axes) -> tuple[Rank, Sequence[Tensor]]:
        """The factor of the outputs, and everything else in the first stage."""
        if not isinstance(form, CPForm | TuckerForm) or (isinstance(form, CPForm) and not spec.is_matrix):
            return super().of_form(form, spec, axes)
        if axes[1]:
            raise CompressionError(
                f"there is no {form.name} of a kernel that is split between two stages, axes={axes}."
            )
        check_shape(form, spec.kernel_shape, "(out, in, *kernel_size)")
        if isinstance(form, CPForm):
            out, inner = form.without_weights()
            out, rest = product_of_rank(out, inner.mT)
        else:
            out, rest = product_of_rank(form.factors[0], form.core_along((0,)).flatten(1))
        return (out.shape[1],), [rest.reshape(-1, *spec.kernel_shape[1:]), out]
