"""Tensor train: 1×1 in, a convolution along each spatial axis in turn, 1×1 out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations

import torch
from torch import Tensor

from tdcompress.decompositions import TTDecomposition, TTOptions, tensor_train, tensor_train_limits
from tdcompress.decompositions.chain_forms import TTForm
from tdcompress.decompositions.forms import Form
from tdcompress.layers.base import FactorizedConv
from tdcompress.layers.exchange import check_shape
from tdcompress.layers.spec import ConvSpec, stage_name
from tdcompress.layers.trains import as_convolutions, spatial_cores, train_shape, without_pointwise
from tdcompress.ranks import tt_curve, tt_parameters, tt_ranks, tt_rule
from tdcompress.ranks.train_chain import chain_of, cut_to_chain
from tdcompress.shapes import Axes, Point, Rank


class TTConv(FactorizedConv[TTDecomposition, TTOptions]):
    """A convolution as a chain over (in, *spatial, out); `rank` = the channels between its stages.

    >>> layer = TTConv.from_conv(torch.nn.Conv2d(16, 32, 3, padding=1), rank=(6, 8, 7))
    >>> [tuple(stage.weight.shape) for stage in layer]
    [(6, 16, 1, 1), (8, 6, 3, 1), (7, 8, 1, 3), (32, 7, 1, 1)]
    """

    method = "tt"
    options = TTOptions
    planned_by_default = True

    @staticmethod
    def arrangements(kernel_axes: tuple[int, ...], options: TTOptions) -> list[Axes]:
        """Every order of the spatial axes; the channels have to stay at the ends for a stack of convolutions."""
        orders = [kernel_axes] if options.orders == "given" else permutations(kernel_axes)
        return [tuple((axis,) for axis in order) for order in orders]

    @staticmethod
    def deterministic(options: TTOptions) -> bool:
        """Always: nothing is drawn."""
        return True

    @staticmethod
    def full_rank(modes: Sequence[int]) -> Rank:
        """One entry a bond: the smaller side of that unfolding."""
        return tensor_train_limits(chain_of(modes))

    @classmethod
    def nearest_feasible(cls, modes: Sequence[int], rank: Rank) -> Rank:
        """Cut to the limits, and along the chain to what the bond before can fill.

        A rank for (in, height, width, out) of a kernel with spatial sizes of 1 has bonds around cores that do
        not exist here; the last of them counts.
        """
        limits = cls.full_rank(modes)
        return cut_to_chain(chain_of(modes), (*rank[: len(limits) - 1], rank[-1]))

    @classmethod
    def tensorly_torch_rank(cls, kernel_shape: Sequence[int], ratio: float) -> Rank:
        """The inner ranks along (in, *kernel_size, out), all in proportion to what they can be at the most."""
        return tt_rule(kernel_shape, ratio)

    @staticmethod
    def parameters_at(modes: Sequence[int], rank: Rank) -> int:
        """The sum of the cores."""
        return tt_parameters(modes, rank)

    @staticmethod
    def choose_ranks(kernels: Tensor, budget: int, options: TTOptions) -> Sequence[Rank]:
        """The ranks that promise to lose least."""
        return tt_ranks(kernels, budget)

    @classmethod
    def curve(cls, kernels: Tensor, budgets: Sequence[int], options: TTOptions) -> Sequence[Point]:
        """The bound on what TT-SVD loses."""
        return tt_curve(kernels, budgets)

    @staticmethod
    def solve(kernel: Tensor, rank: Rank, options: TTOptions, generator: torch.Generator) -> TTDecomposition:
        """TT-SVD over (in, *spatial, out), refined by alternating least squares."""
        return tensor_train(kernel.movedim(0, -1), rank, solver=options)

    @staticmethod
    def stages(spec: ConvSpec, rank: Rank, axes: Axes) -> Mapping[str, ConvSpec]:
        """Pointwise, one dense convolution along every axis in turn, pointwise."""
        channels = [spec.groups * r for r in rank]
        stages = {"input": spec.stage(spec.in_channels, channels[0], spec.pointwise_axes, groups=spec.groups)}
        for group, before, after in zip(axes, channels[:-1], channels[1:], strict=True):
            stages[stage_name(group)] = spec.stage(before, after, group, groups=spec.groups)
        stages["output"] = spec.stage(channels[-1], spec.out_channels, (), groups=spec.groups)
        return stages

    @staticmethod
    def stage_weights(decomposition: TTDecomposition) -> Sequence[Tensor]:
        """Every core with its outputs first, as a convolution's weight has them."""
        return as_convolutions(decomposition.cores)

    # --- as a TTTensor ------------------------------------------------------------------------------------

    @classmethod
    def forms(cls, spec: ConvSpec) -> tuple[type[Form], ...]:
        """A `TTTensor` of a convolution's kernel."""
        return () if spec.is_matrix else (TTForm,)

    def form(self, kernels: Sequence[Tensor]) -> TTForm:
        """A core a stage, and the identity along axes of size 1."""
        first, *spatial, last = kernels
        bonds = self.ranks
        cores = spatial_cores(self.spec, self.axes, spatial, bonds[0], like=last)
        return TTForm((first.reshape(bonds[0], -1).mT[None], *cores, last.reshape(-1, bonds[-1]).mT[..., None]))

    @classmethod
    def of_form(cls, form: Form, spec: ConvSpec, axes: Axes) -> tuple[Rank, Sequence[Tensor]]:
        """A stage a core; those along axes of size 1 go into the one before."""
        if not isinstance(form, TTForm):
            return super().of_form(form, spec, axes)
        check_shape(form, train_shape(spec, axes), "(in, *spatial, out)")
        chain = TTForm(without_pointwise(form.cores, spec, axes)).feasible().cores
        return tuple(core.shape[2] for core in chain[:-1]), as_convolutions(chain)
