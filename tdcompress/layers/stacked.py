"""A stack of plain layers that stands for a dense one: its stages, its rank, and the weight that they make up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tdcompress.decompositions import Solution
from tdcompress.decompositions.algebra import check_rank
from tdcompress.layers.arranging import MethodOptions
from tdcompress.layers.kinds import Convolution, kind_of
from tdcompress.layers.method import Factors, Method
from tdcompress.layers.reshapes import Regroup, Regrouping
from tdcompress.layers.search import as_rank
from tdcompress.layers.spec import ConvSpec
from tdcompress.layers.stack import dense_kernels
from tdcompress.shapes import Axes, Rank


class StackedConv(nn.Sequential, Method[Factors, MethodOptions]):
    """The stages that a method makes of a layer at a rank; `FactorizedConv` tells of arguments and attributes."""

    if TYPE_CHECKING:  # what nn.Sequential does not tell: every stage is a convolution

        def __iter__(self) -> Iterator[Convolution]: ...

    def __init__(
        self,
        spec: ConvSpec,
        rank: int | Sequence[int],
        axes: Axes | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        axes = self.ways(spec, self.options_from(None))[0] if axes is None else axes
        full = self.full_rank(self.modes_of(spec, axes))
        rank = as_rank(rank, len(full))
        check_rank(rank, full, self.method)
        stages = self._planned(spec, rank, axes)
        *_, last = stages  # only the last stage adds the bias
        stages = {**stages, last: stages[last].with_bias(spec.has_bias)}
        built = {name: stage.build(device=device, dtype=dtype) for name, stage in stages.items()}
        super().__init__(OrderedDict(built))
        self.spec, self.ranks, self.axes = spec, rank, axes
        self.solution: Solution | None = None
        self.ratio_asked: float | None = None
        self.in_channels, self.out_channels = spec.in_channels, spec.out_channels
        self.kernel_size, self.stride, self.padding = spec.kernel_size, spec.stride, spec.padding
        self.dilation, self.groups, self.padding_mode = spec.dilation, spec.groups, spec.padding_mode
        self.transposed, self.output_padding = spec.transposed, spec.output_padding
        for name, value in vars(spec.build(device="meta")).items():
            if not name.startswith("_") and not hasattr(self, name):
                setattr(self, name, value)

    @classmethod
    def _planned(cls, spec: ConvSpec, rank: Rank, axes: Axes) -> dict[str, ConvSpec | Regrouping]:
        """The stages by name, the first one of the layer's own kind if only that takes what the layer takes."""
        stages = dict(cls.stages(spec, rank, axes))
        if not spec.adapter.reads_features:
            name, first = next(iter(stages.items()))
            assert isinstance(first, ConvSpec)
            stages[name] = replace(first, kind=spec.kind, options=spec.options)
        return stages

    @property
    def weighted(self) -> list[Any]:
        """The stages that have a weight, in order, without what only rearranges between them."""
        return [stage for stage in self if not isinstance(stage, Regroup)]

    @property
    def stage_specs(self) -> tuple[ConvSpec, ...]:
        """The arguments of every stage that has a weight, in order, bias aside."""
        every = self._planned(self.spec, self.ranks, self.axes).values()
        planned = [part for part in every if isinstance(part, ConvSpec)]
        # A stage that shares its weight with that of another layer may have it lie the other way round.
        kinds = [kind_of(stage) for stage in self.weighted]
        return tuple(
            part if kind is None else replace(part, kind=kind.name) for part, kind in zip(planned, kinds, strict=True)
        )

    @property
    def weight(self) -> Tensor:
        """The dense weight that the stack stands for, with the shape of the original's; differentiable."""
        spec, kernel = self.spec, self._dense_kernels()
        order = [axis for group in self.axes for axis in group] + list(spec.pointwise_axes)
        kernel = kernel.reshape(*kernel.shape[:3], *(spec.kernel_size[axis] for axis in order))
        back = [order.index(axis) for axis in range(len(order))]
        return spec.to_weight(kernel.permute(0, 1, 2, *(3 + place for place in back)))

    def _dense_kernels(self) -> Tensor:
        """The groups' kernels, (groups, out / groups, in / groups, positions), the axes in the stages' order."""
        parts = self._planned(self.spec, self.ranks, self.axes).values()
        weights = [(part, stage.weight) for part, stage in zip(self.stage_specs, self.weighted, strict=True)]
        return dense_kernels(self.spec, parts, weights)

    @property
    def rank(self) -> int | Rank:
        """The rank as the method writes it: a number for CP and SVD, a tuple for the others."""
        return self.ranks

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias, which is the last stage's."""
        bias: nn.Parameter | None = self[-1].bias
        return bias

    @property
    def ratio(self) -> float:
        """The share of the dense weight's parameters that was removed; negative if the layer grew."""
        # One division, so that 0.1 is 0.1 where a tenth was removed.
        return (self.spec.numel - sum(stage.weight.numel() for stage in self.weighted)) / self.spec.numel

    @property
    def growth(self) -> str | None:
        """A sentence to warn by, if the layer has more parameters than the dense one."""
        if self.ratio >= 0:
            return None
        parameters = round((1 - self.ratio) * self.spec.numel)
        rank = self.ranks[0] if len(self.ranks) == 1 else self.ranks
        return (
            f"{self.method} rank {rank} makes the layer larger: {parameters} parameters instead of {self.spec.numel}."
        )

    def __getitem__(self, index: slice | int) -> Any:
        """A stage, or for a slice a plain `nn.Sequential` of stages: part of a stack is no such layer."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)
