"""Hierarchical Tucker: 1×1 in, a few filters over every channel alike, 1×1 over all that they give, 1×1 out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tdcompress.decompositions import HTDecomposition, HTOptions, hierarchical_tucker, hierarchical_tucker_limits
from tdcompress.decompositions.forms import Form, TuckerForm
from tdcompress.layers.base import FactorizedConv
from tdcompress.layers.exchange import check_shape
from tdcompress.layers.reshapes import Regrouping
from tdcompress.layers.spec import ConvSpec
from tdcompress.ranks import ht_curve, ht_parameters, ht_ranks
from tdcompress.shapes import Axes, Point, Rank


class HTConv(FactorizedConv[HTDecomposition, HTOptions]):
    """A convolution whose channels share a few spatial filters; `rank` = (out, in, filters).

    Between two subspaces of the channels every channel goes through the same filters. So the channels are folded into
    the samples, where one stage filters them all, and unfolded again (`Regroup`).

    >>> layer = HTConv.from_conv(torch.nn.Conv2d(16, 32, 3, padding=1), rank=(7, 5, 4))
    >>> [tuple(stage.weight.shape) for stage in layer.weighted]
    [(5, 16, 1, 1), (4, 1, 3, 3), (7, 20, 1, 1), (32, 7, 1, 1)]
    >>> layer(torch.zeros(2, 16, 8, 8)).shape
    torch.Size([2, 32, 8, 8])
    """

    method = "ht"
    options = HTOptions

    @staticmethod
    def arrangements(kernel_axes: tuple[int, ...], options: HTOptions) -> list[Axes]:
        """One stage for all axes."""
        return [(kernel_axes,)] if kernel_axes else [()]

    @staticmethod
    def deterministic(options: HTOptions) -> bool:
        """Always: nothing is drawn."""
        return True

    @staticmethod
    def full_rank(modes: Sequence[int]) -> Rank:
        """Three entries: (out, in, filters), or what the rest of the kernel can fill of them."""
        return hierarchical_tucker_limits(modes)

    @staticmethod
    def parameters_at(modes: Sequence[int], rank: Rank) -> int:
        """Both leaves, the transfer tensor and the filters."""
        return ht_parameters(modes, rank)

    @staticmethod
    def choose_ranks(kernels: Tensor, budget: int, options: HTOptions) -> Sequence[Rank]:
        """The ranks that promise to lose least."""
        return ht_ranks(kernels, budget, options)

    @classmethod
    def curve(cls, kernels: Tensor, budgets: Sequence[int], options: HTOptions) -> Sequence[Point]:
        """What the truncated hierarchical SVD loses."""
        return ht_curve(kernels, budgets)

    @staticmethod
    def solve(kernel: Tensor, rank: Rank, options: HTOptions, generator: torch.Generator) -> HTDecomposition:
        """The truncated hierarchical SVD, refined by alternating least squares."""
        return hierarchical_tucker(kernel, rank, solver=options)

    @staticmethod
    def stages(spec: ConvSpec, rank: Rank, axes: Axes) -> Mapping[str, ConvSpec | Regrouping]:
        """Pointwise, the filters on channels that are folded into the samples, and pointwise twice."""
        out, inner, filters = rank
        groups, spatial = spec.groups, len(spec.kernel_size)
        return {
            "input": spec.stage(spec.in_channels, groups * inner, spec.pointwise_axes, groups=groups),
            "fold": Regrouping((groups, inner), (1, 0), leave=1, spatial=spatial),
            "filters": spec.stage(groups, groups * filters, spec.kernel_axes, groups=groups),
            "unfold": Regrouping((inner, groups, filters), (1, 0, 2), arrive=1, spatial=spatial),
            "transfer": spec.stage(groups * inner * filters, groups * out, (), groups=groups),
            "output": spec.stage(groups * out, spec.out_channels, (), groups=groups),
        }

    @staticmethod
    def stage_weights(decomposition: HTDecomposition) -> Sequence[Tensor]:
        """In-leaf, filters, transfer tensor, out-leaf: the transfer tensor has the kernel's scale."""
        return [
            decomposition.right.mT,
            decomposition.filters,
            decomposition.transfer.flatten(1),
            decomposition.left,
        ]

    def middle_weight(self) -> Tensor | None:
        """Tucker's core: every pair of an input's and an output's basis vector with its sum of filters."""
        (out, inner, filters), groups, size = self.ranks, self.spec.groups, math.prod(self.spec.kernel_size)
        if not self._is_worth_merging(out * inner * size, inner * filters * (size + out)):
            return None
        _, filtering, transfer, _ = self.weighted
        core = transfer.weight.reshape(groups, out * inner, filters) @ filtering.weight.reshape(groups, filters, size)
        return core.reshape(groups * out, inner, *self.spec.kernel_size)

    # --- as a TuckerTensor --------------------------------------------------------------------------------

    @classmethod
    def forms(cls, spec: ConvSpec) -> tuple[type[Form], ...]:
        """A `TuckerTensor` of a convolution's kernel, its spatial axes as one mode."""
        return () if spec.is_matrix else (TuckerForm,)

    def form(self, kernels: Sequence[Tensor]) -> TuckerForm:
        """The transfer tensor is the core, and the filters are the factor of the spatial mode."""
        out, inner, filters = self.ranks
        into, filtering, transfer, last = kernels
        factors = last.reshape(-1, out), into.reshape(inner, -1).mT, filtering.reshape(filters, -1).mT
        return TuckerForm(transfer.reshape(out, inner, filters), factors)

    @classmethod
    def of_form(cls, form: Form, spec: ConvSpec, axes: Axes) -> tuple[Rank, Sequence[Tensor]]:
        """As it is."""
        if not isinstance(form, TuckerForm):
            return super().of_form(form, spec, axes)
        (out, inner), spatial = spec.kernel_shape[:2], spec.kernel_size
        check_shape(form, (out, inner, math.prod(spatial)), "(out, in, positions of the kernel)")
        tree = form.feasible(hierarchical_tucker_limits(form.shape))
        left, right, filters = tree.factors
        return tuple(tree.core.shape), [right.mT, filters.mT, tree.core.flatten(1), left]
