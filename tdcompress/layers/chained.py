"""Methods whose factors are a chain of cores along a grid: Kronecker products are such a chain of two."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tdcompress.decompositions.chain_forms import TTMForm
from tdcompress.decompositions.forms import Form
from tdcompress.layers.exchange import check_shape
from tdcompress.layers.grid import as_reshape_of
from tdcompress.layers.reshaped import ReshapedConv
from tdcompress.layers.reshapes import Regrouping
from tdcompress.layers.spec import ConvSpec
from tdcompress.layers.stack import chain_cores, chain_stages, chain_weights
from tdcompress.ranks.ttm_costs import is_cheaper_from_last
from tdcompress.shapes import Axes, Rank


class ChainedConv(ReshapedConv):
    """A matrix as a chain of cores, each of them a stage, in the order that takes fewer multiply-adds."""

    @staticmethod
    @abstractmethod
    def cores_of(decomposition: Any) -> Sequence[Tensor]:
        """The chain: for every core (bond before, rows, columns, bond behind)."""

    @staticmethod
    def stages(spec: ConvSpec, rank: Rank, axes: Axes) -> Mapping[str, ConvSpec | Regrouping]:
        """One along every axis of the grid."""
        reshape = as_reshape_of(axes)
        return chain_stages(spec, reshape, rank, from_last=is_cheaper_from_last(reshape, rank))

    @classmethod
    def stage_weights(cls, decomposition: Any) -> Sequence[Tensor]:
        """The cores as matrices."""
        cores = cls.cores_of(decomposition)
        return chain_weights(cores, from_last=is_cheaper_from_last(decomposition.reshape, _bonds(cores)))

    # --- as a TTMatrix ------------------------------------------------------------------------------------

    def form(self, kernels: Sequence[Tensor]) -> TTMForm:
        """Its cores."""
        reshape = as_reshape_of(self.axes)
        from_last = is_cheaper_from_last(reshape, self.ranks)
        return TTMForm(chain_cores(kernels, reshape, self.ranks, from_last=from_last))

    @classmethod
    def of_form(cls, form: Form, spec: ConvSpec, axes: Axes) -> tuple[Rank, Sequence[Tensor]]:
        """As it is, ranks that cannot be filled cut."""
        assert isinstance(form, TTMForm)
        check_shape(form, spec.kernel_shape[:2], "(out, in)")
        cores = form.feasible().cores
        return _bonds(cores), chain_weights(cores, from_last=is_cheaper_from_last(as_reshape_of(axes), _bonds(cores)))


def _bonds(cores: Sequence[Tensor]) -> Rank:
    return tuple(core.shape[-1] for core in cores[:-1])
