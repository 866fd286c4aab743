"""What every factorized convolution promises, and the way from a dense one to it and back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tdcompress.decompositions import Solution, Solver
from tdcompress.decompositions.algebra import check_rank, check_tensor, relative_error
from tdcompress.errors import warn
from tdcompress.layers.eager import EagerStack
from tdcompress.layers.exchange import Exchange
from tdcompress.layers.fisher import FisherFactors, whitening_of
from tdcompress.layers.kinds import Convolution, bias_of, kind_of, weight_of
from tdcompress.layers.method import Factors, Method, MethodOptions
from tdcompress.layers.moments import InputMoments
from tdcompress.layers.parameters import parameter
from tdcompress.layers.request import Request
from tdcompress.layers.reshapes import Regroup, Regrouping
from tdcompress.layers.search import as_rank, best_candidate, check_reachable
from tdcompress.layers.spec import ConvSpec
from tdcompress.layers.stack import dense_kernels
from tdcompress.layers.whitening import Whitening, takes_over_mean
from tdcompress.shapes import AskedRank, Axes, Rank


class FactorizedConv(EagerStack, Exchange, Method[Factors, MethodOptions]):
    """A convolution as a stack of plain convolutions that do the same with fewer parameters.

    The stack is an ordinary `nn.Sequential`, so whatever PyTorch can do with convolutions it can do with
    this: compile, export, autocast, quantize, prune, copy, save. Only the last stage has a bias. At any rank
    the stack equals the dense convolution with the kernel `weight`, and at full rank the one it was made from.

    A transposed convolution becomes a stack with transposed stages, and a linear layer, where the method takes
    them, one of linear layers; an embedding becomes a narrower one and a linear layer.

    It keeps the attributes of the layer that it stands for, `in_features` and `padding_idx` for example, and has
    `in_channels`, `out_channels`, `kernel_size`, `stride`, `padding`, `dilation`, `groups`, `padding_mode`,
    `transposed`, `output_padding` and `bias` whatever that is.

    A new method is a subclass that fills in the abstract methods, see `tdcompress.layers.method.Method`.

    Args:
        spec: the convolution to stand for.
        rank: the rank, with as many entries as the method has; one whole number for all of them.
        axes: which spatial axes the stages in the middle work along, in their order; the method's own
            arrangement by default.
        device: where the stages' parameters are made.
        dtype: their type.

    Attributes:
        spec: the convolution that the stack stands for.
        ranks: the rank, always a tuple.
        axes: the arrangement of the spatial axes.
        solution: how the factors were found; None for a layer that was built with fresh weights.
        ratio_asked: the ratio that was asked for; None if it was a rank. `ratio` is what was reached.
    """

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

    # --- from a dense convolution and back --------------------------------------------------------------

    @classmethod
    def from_conv(
        cls,
        conv: nn.Module,
        *,
        ratio: float | None = None,
        rank: AskedRank = None,
        solver: Solver = None,
        seed: int | torch.Generator = 0,
        axes: Axes | None = None,
        whiten: InputMoments | FisherFactors | None = None,
    ) -> Self:
        """Factorize a convolution; the one given is not touched.

        Args:
            conv: an `nn.Conv1d` to `nn.Conv3d`, an `nn.ConvTranspose1d` to `nn.ConvTranspose3d`, or, for methods
                that take a matrix, an `nn.Linear`, an `nn.Embedding` or a `Conv1D` of `transformers`; or a layer of a
                registered kind.
            ratio: the share of the weight's parameters to remove, in (0, 1). At most `1 − ratio` is kept,
                never more, and the budget is used up to the next rank step.
            rank: an exact rank instead of a ratio: a number for CP and SVD, (out, in) for Tucker, the inner ranks
                along (in, *spatial, out) for the tensor train, in the given order of the axes; one number stands for
                all entries. Or `"tensorly-torch"`, with a ratio, for the rank that tensorly-torch and the paper would
                take.
            solver: None for the method's defaults, its options (`CPOptions`, `TuckerOptions`, `TTOptions`,
                `SVDOptions`), or `"tensorly"` for the paper's own.
            seed: what random starts are drawn from, a number or a `torch.Generator`.
            axes: the only arrangement of the spatial axes to consider, as in the attribute `axes`; by default all that
                the method and its options have are tried for a ratio, and a rank is meant for the first.
            whiten: moments of this layer's inputs. The features, not the weights, are then approximated best, as far as
                the second moment is one of channels times one of kernel positions; the bias takes over the mean of
                what is lost. See `input_moments`. With `FisherFactors` it is the model's predictions that are, as far
                as their second order goes; methods that read a matrix through a grid look at the features alone.

        Returns:
            The factorized layer with the convolution's dtype, device, memory format, training mode and requires_grad.

        Raises:
            CompressionError: what was given cannot be factorized as asked; the message says why.
        """
        options = cls.options_from(solver)
        request = Request(options=options, ratio=ratio, rank=rank, axes=axes, whiten=whiten, seed=seed)
        layer = cls.factorized(conv, request)
        if layer.growth:
            warn(layer.growth)
        return layer

    @classmethod
    def factorized(cls, conv: nn.Module, request: Request[MethodOptions]) -> Self:
        """What `from_conv` gives, without its warning, which must not be lost on another process."""
        spec, weight, bias = ConvSpec.of(conv), weight_of(conv), bias_of(conv)
        request.check()
        check_reachable(cls, spec, request.bound, request.options)
        check_tensor(weight)
        whitening = None if request.whiten is None else whitening_of(request.whiten, spec)
        best = best_candidate(cls, spec, weight.detach(), request, whitening)
        layer = cls(spec, best.rank, best.axes, device="meta")  # on meta: no fresh weights, no global generator
        parts = layer.stage_specs
        every = cls.stage_kernels(best.decompositions, parts, best.axes, whitening)
        for stage, part, kernels in zip(layer.weighted, parts, every, strict=True):
            stage.weight = parameter(part.to_weight(kernels).to(weight.dtype), like=weight)
        if bias is not None:
            layer[-1].bias = parameter(bias.detach().clone(), like=bias)
        layer.solution = best.solution
        layer.ratio_asked = None if request.ratio is None else float(request.ratio)
        if whitening is not None:
            layer._complete_whitened(weight, whitening)
        return layer.train(conv.training)

    def _complete_whitened(self, dense: Tensor, whitening: Whitening) -> None:
        """Let the bias make up for the mean that was lost, and say how far the weight itself is from the dense one."""
        with torch.no_grad():
            weight = self.weight
            if self.bias is not None and takes_over_mean(self.spec):
                self.bias.add_(whitening.lost_mean(dense.double() - weight.double(), self.spec).to(self.bias))
            if self.solution is not None:
                self.solution = replace(self.solution, relative_error=relative_error(dense, weight))

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

    def to_conv(self) -> Any:
        """The dense layer, of the original's kind, that does what this layer does, with its own copy of the weights."""
        conv, kind = self.spec.build(device="meta"), self.spec.adapter
        setattr(conv, kind.weight, parameter(self.weight.detach(), like=self.weighted[-1].weight))
        if self.bias is not None:
            setattr(conv, kind.bias, parameter(self.bias.detach().clone(), like=self.bias))
        return conv.train(self.training)

    def extra_repr(self) -> str:
        """The convolution, the rank, and what the decomposition reached."""
        shown = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, rank={self.rank}, "
        shown += f"ratio={self.ratio:.4f}"
        return shown if self.solution is None else f"{shown}, relative_error={self.solution.relative_error:.4f}"

    def __getitem__(self, index: slice | int) -> Any:
        """A stage, or for a slice a plain `nn.Sequential` of stages: part of a stack is no such layer."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)
