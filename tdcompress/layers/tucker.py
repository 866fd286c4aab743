"""Tucker: 1×1 in, a small dense convolution, 1×1 out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tdcompress.decompositions import TuckerDecomposition, TuckerOptions, tucker, tucker_limits
from tdcompress.decompositions.forms import Form, TuckerForm
from tdcompress.layers.base import FactorizedConv
from tdcompress.layers.exchange import check_shape
from tdcompress.layers.spec import ConvSpec
from tdcompress.ranks import tucker_curve, tucker_parameters, tucker_ranks, tucker_rule
from tdcompress.shapes import Axes, Point, Rank


class TuckerConv(FactorizedConv[TuckerDecomposition, TuckerOptions]):
    """A convolution between two subspaces of the channels; `rank` = (out, in) (Kim et al. 2016).

    >>> layer = TuckerConv.from_conv(torch.nn.Conv2d(16, 32, 3, padding=1), rank=(7, 5))
    >>> [tuple(stage.weight.shape) for stage in layer]
    [(5, 16, 1, 1), (7, 5, 3, 3), (32, 7, 1, 1)]
    """

    method = "tucker"
    options = TuckerOptions
    planned_by_default = True

    @staticmethod
    def deterministic(options: TuckerOptions) -> bool:
        """Always: nothing is drawn."""
        return True

    @staticmethod
    def full_rank(modes: Sequence[int]) -> Rank:
        """Two entries: (out, in), or what the rest of the kernel can fill of them."""
        return tucker_limits(modes, (0, 1))

    @classmethod
    def tensorly_torch_rank(cls, kernel_shape: Sequence[int], ratio: float) -> Rank:
        """(out, in), in proportion to the channels."""
        return tucker_rule(kernel_shape, ratio)

    @staticmethod
    def parameters_at(modes: Sequence[int], rank: Rank) -> int:
        """Both factors and the core."""
        return tucker_parameters(modes, rank)

    @staticmethod
    def choose_ranks(kernels: Tensor, budget: int, options: TuckerOptions) -> Sequence[Rank]:
        """The pair that keeps most."""
        return tucker_ranks(kernels, budget, options)

    @classmethod
    def curve(cls, kernels: Tensor, budgets: Sequence[int], options: TuckerOptions) -> Sequence[Point]:
        """What the truncated HOSVD loses."""
        return tucker_curve(kernels, budgets)

    @staticmethod
    def solve(kernel: Tensor, rank: Rank, options: TuckerOptions, generator: torch.Generator) -> TuckerDecomposition:
        """HOSVD refined by HOOI over the channel modes."""
        return tucker(kernel, rank, modes=(0, 1), solver=options)

    @staticmethod
    def stages(spec: ConvSpec, rank: Rank, axes: Axes) -> Mapping[str, ConvSpec]:
        """Pointwise, the core with the whole kernel size, pointwise."""
        out, inner = (spec.groups * r for r in rank)
        return {
            "input": spec.stage(spec.in_channels, inner, spec.pointwise_axes, groups=spec.groups),
            "core": spec.stage(inner, out, spec.kernel_axes, groups=spec.groups),
            "output": spec.stage(out, spec.out_channels, (), groups=spec.groups),
        }

    @staticmethod
    def stage_weights(decomposition: TuckerDecomposition) -> Sequence[Tensor]:
        """In-factor, core, out-factor: orthonormal projections around a core with the kernel's scale."""
        core, factors = decomposition.core, decomposition.factors
        return [factors[1].mT, core, factors[0]]

    # --- as a TuckerTensor --------------------------------------------------------------------------------

    @classmethod
    def forms(cls, spec: ConvSpec) -> tuple[type[Form], ...]:
        """A `TuckerTensor` of a convolution's kernel."""
        return () if spec.is_matrix else (TuckerForm,)

    def form(self, kernels: Sequence[Tensor]) -> TuckerForm:
        """The core and both factors, identities along the spatial axes."""
        out_rank, inner_rank = self.ranks
        inner, out = kernels[0].reshape(inner_rank, -1).mT, kernels[2].reshape(-1, out_rank)
        return TuckerForm.partial(kernels[1].reshape(*self.ranks, *self.spec.kernel_size), (out, inner))

    @classmethod
    def of_form(cls, form: Form, spec: ConvSpec, axes: Axes) -> tuple[Rank, Sequence[Tensor]]:
        """The factors along the spatial axes go into the core."""
        if not isinstance(form, TuckerForm):
            return super().of_form(form, spec, axes)
        check_shape(form, spec.kernel_shape, "(out, in, *kernel_size)")
        partial = TuckerForm.partial(form.core_along((0, 1)), form.factors[:2])
        found = partial.feasible(cls.full_rank(spec.kernel_shape))
        core, (out, inner, *_) = found.core, found.factors
        return tuple(core.shape[:2]), [inner.mT, core, out]
